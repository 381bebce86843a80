"""The table of chips against JAX's own, against what libtpu says, and against itself."""

import dataclasses
import json
import subprocess
import sys

import pytest
from jax.experimental.pallas import tpu
from tpu_compiler import environment, needs_libtpu

from mom_jax.analysis.chips import CHIPS, chip, peak_flops

GIB = 2**30
FIGURES = ("peak_flops", "memory_bytes", "memory_bandwidth", "link_bandwidth")


def test_devices_are_known_by_their_exact_names():
    assert chip("TPU v5 lite") is chip("TPU v5e")
    assert chip("TPU v5") is chip("TPU v5p")
    assert chip("TPU v6 lite") is chip("TPU v6e")
    assert chip("NVIDIA A100-SXM4-80GB").name == "A100 SXM 80 GB"
    for kind in ("cpu", "TPU", "TPU v5 lite ", "tpu v4", "NVIDIA H100 80GB HBM3 MIG 1g.10gb"):
        assert chip(kind) is None
        assert peak_flops(kind) is None


def test_peak_flops_are_the_chips():
    assert peak_flops("TPU v4") == 275e12
    assert peak_flops("TPU v5 lite") == 197e12
    assert peak_flops("TPU v5") == 459e12
    assert peak_flops("TPU v6 lite") == 918e12
    assert peak_flops("NVIDIA H100 80GB HBM3") == peak_flops("NVIDIA H200") == 989e12


@pytest.mark.parametrize("kind", CHIPS)
def test_units(kind):
    # A factor of 8 or 1000 off, or one row's figures in another's place.
    known = chip(kind)
    assert 5e13 < known.peak_flops < 5e15
    assert 15 * GIB < known.memory_bytes < 300 * GIB
    assert 4e11 < known.memory_bandwidth < 1e13
    assert 1e11 < known.link_bandwidth < 2e12
    # Links are slower than memory, and a number that is read from memory has to be used some hundred times.
    assert 2 < known.memory_bandwidth / known.link_bandwidth < 16
    assert 100 < known.peak_flops / known.memory_bandwidth < 700
    assert known.source.startswith("https://")


@pytest.mark.parametrize(
    ("newer", "older"),
    [
        ("TPU v4", "TPU v3"),
        ("TPU v5", "TPU v4"),
        ("TPU v5", "TPU v5 lite"),
        ("TPU v6 lite", "TPU v5 lite"),
        ("TPU7x", "TPU v5"),
        ("NVIDIA A100-SXM4-80GB", "NVIDIA A100-SXM4-40GB"),
        ("NVIDIA A100-SXM4-80GB", "NVIDIA A100 80GB PCIe"),
        ("NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-80GB"),
        ("NVIDIA H100 80GB HBM3", "NVIDIA H100 PCIe"),
        ("NVIDIA H200", "NVIDIA H100 80GB HBM3"),
    ],
)
def test_a_newer_or_larger_chip_has_no_less_of_anything(newer, older):
    devices = {"TPU v3": 2, "TPU7x": 2}  # of a chip
    more, less = ([devices.get(kind, 1) * getattr(chip(kind), figure) for figure in FIGURES] for kind in (newer, older))
    assert all(a >= b for a, b in zip(more, less, strict=True))
    assert more != less


@pytest.mark.parametrize(
    ("kind", "version", "cores"),
    [
        ("TPU v3", "TPU_V3", 1),
        ("TPU v4", "TPU_V4", 2),
        ("TPU v5 lite", "TPU_V5E", 1),
        ("TPU v5", "TPU_V5P", 2),
        ("TPU v6 lite", "TPU_V6E", 1),
        ("TPU7x", "TPU_7X", 1),
    ],
)
def test_agrees_with_the_table_that_kernels_are_written_with(kind, version, cores):
    # JAX's figures are rounded, and some are of what programs reach; halves and doubles would still be seen.
    core = tpu.get_tpu_info_for_chip(tpu.ChipVersion[version], cores)
    theirs = (core.bf16_ops_per_second, core.hbm_capacity_bytes, core.mem_bw_bytes_per_second)
    for figure, value in zip(FIGURES, theirs, strict=False):
        assert 0.85 < getattr(chip(kind), figure) / (cores * value) < 1.15, figure


def test_rows_are_different_chips():
    rows = set(CHIPS.values())
    assert len({row.name for row in rows}) == len(rows)
    assert len({dataclasses.replace(row, name="", source="") for row in rows}) == len(rows)


# Prints kind and available bytes of a topology's devices: of the error about a program that needs far too much.
NEEDS_TOO_MUCH = """
import json, re, sys
import jax
from train.planning.tpu import devices_of, prepare_environment

prepare_environment()
result = {}
for name in sys.argv[1:]:
    device = devices_of(name)[0]
    x = jax.ShapeDtypeStruct((1024, 2**30), "uint8", sharding=jax.sharding.SingleDeviceSharding(device))
    try:
        jax.jit(lambda x: x + 1).trace(x).lower(lowering_platforms=("tpu",)).compile()
    except jax.errors.JaxRuntimeError as error:
        result[name] = device.device_kind, float(re.search(r"available HBM \\(([\\d.]+)G\\)", str(error))[1])
print(json.dumps(result))
"""


@pytest.mark.slow
@needs_libtpu
def test_names_and_memory_of_real_topologies():
    topologies = ["v3:2x2x1", "v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1"]
    command = [sys.executable, "-c", NEEDS_TOO_MUCH, *topologies]
    run = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-4000:]
    found = json.loads(run.stdout)
    assert list(found) == topologies
    for kind, available in found.values():
        assert 0.95 < available * GIB / chip(kind).memory_bytes < 1.01, kind


def test_float32_is_multiplied_as_the_platform_does():
    """As TF32 on NVIDIA's GPUs, at half of bfloat16's rate; as bfloat16 on TPUs."""
    assert peak_flops("NVIDIA H100 80GB HBM3", "float32") == peak_flops("NVIDIA H100 80GB HBM3") / 2
    assert peak_flops("TPU v5 lite", "float32") == peak_flops("TPU v5 lite") == 197e12
    assert peak_flops("a toaster", "float32") is None
