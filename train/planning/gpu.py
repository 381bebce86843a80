"""GPU topologies on machines without a GPU: what JAX's CUDA plugin needs to compile for them."""

import dataclasses
import importlib.util
import os
import re
from typing import Any

import jax
from jax.experimental import topologies

from mom_jax.fields import ConfigError
from mom_jax.platforms import Capability


@dataclasses.dataclass(frozen=True)
class Gpu:
    """What XLA asks of a card that is not there. Figures are the vendor's (CUDA programming guide, data sheets).

    kind: JAX's `device_kind`. multiprocessors, lanes: each multiprocessor's float32 units. shared_memory: bytes that a
    multiprocessor has; a block can have 1 KiB less. cache: bytes of L2. bandwidth: bytes/s of memory.
    """

    kind: str
    capability: Capability
    multiprocessors: int
    lanes: int
    shared_memory: int
    cache: int
    memory: int
    bandwidth: int
    gigahertz: float


GPUS = {
    "a100": Gpu("NVIDIA A100-SXM4-80GB", (8, 0), 108, 64, 167936, 41943040, 84987740160, 2039000000000, 1.41),
    "h100": Gpu("NVIDIA H100 80GB HBM3", (9, 0), 132, 128, 233472, 52428800, 84929347584, 3352320000000, 1.98),
    "h200": Gpu("NVIDIA H200", (9, 0), 132, 128, 233472, 62914560, 150039691264, 4800000000000, 1.98),
}
EXAMPLES = "h100:8 (one node of 8 GPUs), h100:8x4 (4 such nodes), h200:8, a100:8"
PACKAGES = ("jax-cuda13-plugin", "jax-cuda13-pjrt")


def is_gpu(topology: str) -> bool:
    """Whether a topology's kind is a GPU's."""
    return topology.split(":")[0] in GPUS


def prepare_environment() -> None:
    """To be called before JAX looks for devices. Raises ConfigError where the plugin is missing."""
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"  # a card that is here has no part in it
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)
    if importlib.util.find_spec("jax_plugins") is None or importlib.util.find_spec("jax_plugins.xla_cuda13") is None:
        wanted = " ".join(f"{package}=={jax.__version__}" for package in PACKAGES)
        raise ConfigError(
            f"JAX's plugin for CUDA is not installed: pip install --no-deps --target FOLDER {wanted}, and put FOLDER "
            "into PYTHONPATH (`make test-slow` makes .venv/cuda)"
        )


def has_cudnn() -> bool:
    """Whether cuDNN is there, without which XLA cannot compile its attention."""
    return importlib.util.find_spec("nvidia") is not None and importlib.util.find_spec("nvidia.cudnn") is not None


def devices_of(topology: str) -> list[Any]:
    """The devices of a topology such as h100:8x4: GPUs of a node x nodes. Raises ConfigError for another form."""
    match = re.fullmatch(r"(\w+):([1-9]\d*)(?:x([1-9]\d*))?", topology)
    if match is None or match[1] not in GPUS:
        raise ConfigError(f"topology={topology!r}: must be KIND:GPUS or KIND:GPUSxNODES, such as {EXAMPLES}")
    kind, per_node, nodes = match[1], int(match[2]), int(match[3] or 1)
    description = topologies.get_topology_desc(
        kind, platform="cuda", target_config=target_config(GPUS[kind]), topology=f"1x{nodes}x{per_node}"
    )
    return list(description.devices)


def capability(device: Any) -> Capability:
    """The compute capability of a device of a topology."""
    return next(card.capability for card in GPUS.values() if card.kind == device.device_kind)


def target_config(gpu: Gpu) -> str:
    """XLA's `GpuTargetConfigProto` as text."""
    major, minor = gpu.capability
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {gpu.shared_memory}
  shared_memory_per_block_optin: {gpu.shared_memory - 1024}
  threads_per_core_limit: 2048
  core_count: {gpu.multiprocessors}
  fpus_per_core: {gpu.lanes}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {gpu.bandwidth}
  l2_cache_size: {gpu.cache}
  clock_rate_ghz: {gpu.gigahertz}
  device_memory_size: {gpu.memory}
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  dnn_version: "9.28.1"
  driver_version: "13.0.0"
  compile_time_toolkit_version: "13.0.0"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 28 patch: 1 }}
runtime_version {{ major: 13 minor: 5 patch: 0 }}
device_description_str: "{gpu.kind}"
"""
