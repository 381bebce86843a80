"""The mesh, and where arrays lie on it: one table of rules from logical axes to mesh axes."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mom_jax.config import ModelConfig
from mom_jax.config.mesh import AXES, MeshConfig, describe_mesh
from mom_jax.fields import require

# Logical axis of an array -> the mesh axes that divide it, in this order. An axis is passed over where another
# dimension of the array has it already, or where it does not divide the dimension.
RULES: dict[str, tuple[str, ...]] = {
    "modules": ("module",),
    "all modules": ("module",),  # the same where every device needs all of them
    "heads": ("tensor",),
    "mlp": ("tensor",),
    "embed": ("fsdp", "module"),  # d_model in sublayers
    "width": ("fsdp", "module", "tensor"),  # d_model elsewhere; and the routers' width
}
# The logical axes that stay divided in the computation. All others are gathered before use.
COMPUTED = ("modules", "heads", "mlp")


def make_mesh(config: MeshConfig | None = None, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh over `devices` (default: all); by default of one device.

    Raises ConfigError for a mesh larger than the devices, or one that leaves out devices of other processes.
    """
    devices = jax.devices() if devices is None else devices
    sizes = MeshConfig(data=1).sizes(1) if config is None else config.sizes(len(devices))
    count = math.prod(sizes.values())
    if len({device.process_index for device in devices}) > 1:
        allowed = f"is {count} devices and must be all {len(devices)} of all processes"
        require(count == len(devices), "mesh", describe_mesh(sizes), allowed)
    return jax.make_mesh(tuple(sizes.values()), AXES, (AxisType.Auto,) * len(AXES), devices=devices[:count])


def check_mesh(config: ModelConfig, sizes: Mapping[str, int]) -> None:
    """Raises ConfigError where a mesh with axes of these sizes cannot divide a model as asked."""
    for name, field, size in (
        ("fsdp", "model.d_model", config.d_model),
        ("tensor", "model.num_heads", config.num_heads),
        ("tensor", "model.d_ff", config.inner_width),
        ("tensor", "model.module_d_ff", config.module_width),
    ):
        require(size % sizes[name] == 0, f"mesh.{name}", sizes[name], f"must divide {field}={size}")


# Where arrays lie.


def partition(axes: Sequence[str], shape: Sequence[int], sizes: Mapping[str, int]) -> tuple[tuple[str, ...], ...]:
    """The mesh axes that divide each dimension of an array with these logical axes."""
    used: set[str] = set()
    result = []
    for name, size in zip(axes, shape, strict=True):
        taken: list[str] = []
        for axis in RULES.get(name, ()):
            parts = math.prod(sizes[a] for a in taken) * sizes[axis]
            if axis not in used and sizes[axis] > 1 and size % parts == 0:
                taken.append(axis)
        used |= set(taken)
        result.append(tuple(taken))
    return tuple(result)


def parameter_specs(model: nnx.Module, mesh: Mesh) -> dict[Any, Any]:
    """The PartitionSpec of every parameter of `model` (which may be abstract), as `mom_jax.parameters` nests them."""

    def spec(param: nnx.Param) -> PartitionSpec:
        return PartitionSpec(*(axes or None for axes in partition(param.axes, param.whole, mesh.shape)))

    state = nnx.state(model, nnx.Param)
    specs = jax.tree.map(spec, state, is_leaf=lambda leaf: isinstance(leaf, nnx.Param))
    return nnx.to_pure_dict(specs)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Of arrays whose first axis is the batch."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of an array that every device has whole."""
    return NamedSharding(mesh, PartitionSpec())


def place_rows(rows: np.ndarray, mesh: Mesh) -> jax.Array:
    """A batch that every process has whole, on the devices of all."""
    return jax.make_array_from_callback(rows.shape, batch_sharding(mesh), lambda part: rows[part])


def on_devices(function: Callable, mesh: Mesh, *, in_specs: Any, out_specs: Any) -> Callable:
    """`function` of what each device has, on all devices of the mesh."""
    if mesh.size == 1:
        return function
    # The check would ask Pallas kernels along which axes their results vary, which they do not say.
    return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
