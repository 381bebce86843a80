"""Devices that are not there: topologies of TPUs and GPUs, and what compiling for them needs."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
from jax.sharding import Mesh

from mom_jax.platforms import building_for
from train.planning import gpu, tpu


def prepare_environment(topology: str) -> None:
    """To be called before JAX looks for devices. Raises ConfigError where what compiles for the topology is missing."""
    (gpu if gpu.is_gpu(topology) else tpu).prepare_environment()


def devices_of(topology: str) -> list[Any]:
    """The devices of a topology such as v5e:4x4 or h100:8x2. Raises ConfigError where there is none of that name."""
    return (gpu if gpu.is_gpu(topology) else tpu).devices_of(topology)


@contextlib.contextmanager
def building(mesh: Mesh) -> Iterator[tuple[str, ...]]:
    """What is traced and lowered within is for the devices of the mesh; gives `lower`'s platforms."""
    device = mesh.devices.flat[0]
    if device.platform == "tpu":
        with building_for("tpu", kind=device.device_kind):
            yield ("tpu",)
        return
    # Kernels ask the mesh of the context what device they are for.
    with building_for("gpu", gpu.capability(device)), jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        yield ("cuda",)
