"""What chips can do at most, by the name that JAX gives a device: the published figures, in one table.

Everything is per JAX device. That is a chip, except for TPU v3 and TPU7x, whose chips are two devices that have half of
everything each. (Topologies for compilation ahead of time list both halves of a TPU v4 too, unless asked for
`chip_config_name="megacore"`; a program that runs on a TPU v4 sees whole chips.)
"""

import dataclasses

_GIB = 2**30
_TPU_DOCS = "https://cloud.google.com/tpu/docs/"
_A100 = "https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/a100/pdf/nvidia-a100-datasheet.pdf"
_H100 = "https://www.nvidia.com/en-us/data-center/h100/"
_H200 = "https://www.nvidia.com/en-us/data-center/h200/"


@dataclasses.dataclass(frozen=True)
class Chip:
    """One JAX device.

    name: what it is called. source: where the figures are published.
    peak_flops: dense bfloat16 FLOP/s, a multiply-add being two.
    memory_bytes: of HBM; of this the runtime keeps up to 5 % for itself.
    memory_bandwidth: of HBM, bytes/s.
    link_bandwidth: bytes/s that the device can send to others of its slice or server, over all of its links (ICI,
        NVLink) together; it can receive as much at the same time. A v5e or v6e has four links and a v4, v5p or TPU7x
        six, for two directions of each axis of its torus: a ring over one axis uses two of them.
    float32_share: the share of that peak at which float32 operands are multiplied at JAX's default precision: as
        bfloat16 on TPUs, as TF32 on NVIDIA's GPUs.
    network_bandwidth: bytes/s that the device can send to other servers, where servers have a network of their own
        beside the links: InfiniBand as in NVIDIA's DGX systems, one adapter a GPU.
    """

    name: str
    peak_flops: float
    memory_bytes: int
    memory_bandwidth: float
    link_bandwidth: float
    source: str
    float32_share: float = 1.0
    network_bandwidth: float | None = None

    def flops(self, dtype: str) -> float:
        """The peak FLOP/s of products of operands of this dtype at JAX's default precision."""
        return self.peak_flops * (self.float32_share if dtype == "float32" else 1.0)


# Google states links as the sum of both directions (v5e: 400 GB/s; older pages have one, 1,600 Gbit/s), and so does
# NVIDIA. Google's all-reduce bandwidth of a pod, over its chips, is one direction's sum: 200 GB/s for v5e, 400 GB/s for
# v6e. The links of v3 and v4 are those of arXiv 2304.01433, table 4. Where pages say GB of memory they mean GiB.
_V3 = Chip("TPU v3", 123e12 / 2, 32 * _GIB // 2, 900e9 / 2, 4 * 70e9 / 2, _TPU_DOCS + "v3")
_V4 = Chip("TPU v4", 275e12, 32 * _GIB, 1200e9, 6 * 50e9, _TPU_DOCS + "v4")
_V5E = Chip("TPU v5e", 197e12, 16 * _GIB, 819e9, 400e9 / 2, _TPU_DOCS + "v5e")
_V5P = Chip("TPU v5p", 459e12, 95 * _GIB, 2765e9, 1200e9 / 2, _TPU_DOCS + "v5p")
_V6E = Chip("TPU v6e", 918e12, 32 * _GIB, 1638e9, 800e9 / 2, _TPU_DOCS + "v6e")
_7X = Chip("TPU7x", 2307e12 / 2, 192 * _GIB // 2, 7380e9 / 2, 1200e9 / 2 / 2, _TPU_DOCS + "tpu7x")

# NVIDIA's pages of the H series state twice these FLOPs: with sparsity. A PCIe card's NVLink joins two cards.
# DGX A100 has eight adapters of 200 Gbit/s, DGX H100 and H200 eight of 400.
_AMPERE = {"float32_share": 0.5, "network_bandwidth": 25e9}
_HOPPER = {"float32_share": 0.5, "network_bandwidth": 50e9}
_A100_40 = Chip("A100 40 GB", 312e12, 40 * _GIB, 1555e9, 600e9 / 2, _A100, **_AMPERE)
_A100_SXM_80 = Chip("A100 SXM 80 GB", 312e12, 80 * _GIB, 2039e9, 600e9 / 2, _A100, **_AMPERE)
_A100_PCIE_80 = Chip("A100 PCIe 80 GB", 312e12, 80 * _GIB, 1935e9, 600e9 / 2, _A100, **_AMPERE)
_H100_SXM = Chip("H100 SXM", 989e12, 80 * _GIB, 3350e9, 900e9 / 2, _H100, **_HOPPER)
_H100_PCIE = Chip("H100 PCIe", 756e12, 80 * _GIB, 2000e9, 600e9 / 2, _H100, **_HOPPER)
_H200_SXM = Chip("H200 SXM", 989e12, 141 * _GIB, 4800e9, 900e9 / 2, _H200, **_HOPPER)

# By JAX's `device_kind`. Names are matched exactly, since a longer one may be another board or a slice of one
# (`... MIG 1g.10gb`). Of a TPU's two names, the first is what JAX says today.
CHIPS = {
    "TPU v3": _V3,
    "TPU v4": _V4,
    "TPU v5 lite": _V5E,
    "TPU v5e": _V5E,
    "TPU v5": _V5P,
    "TPU v5p": _V5P,
    "TPU v6 lite": _V6E,
    "TPU v6e": _V6E,
    "TPU7x": _7X,
    "NVIDIA A100-SXM4-40GB": _A100_40,
    "NVIDIA A100-SXM4-80GB": _A100_SXM_80,
    "NVIDIA A100-PCIE-40GB": _A100_40,
    "NVIDIA A100 80GB PCIe": _A100_PCIE_80,
    "NVIDIA H100 80GB HBM3": _H100_SXM,
    "NVIDIA H100 PCIe": _H100_PCIE,
    "NVIDIA H200": _H200_SXM,
}


def chip(device_kind: str) -> Chip | None:
    """The chip of JAX's `device_kind`; None where it is not in the table."""
    return CHIPS.get(device_kind)


def peak_flops(device_kind: str, dtype: str = "bfloat16") -> float | None:
    """The peak FLOP/s of dense products of that dtype on one device of JAX's `device_kind`; None where it is not in the
    table."""
    known = chip(device_kind)
    return None if known is None else known.flops(dtype)
