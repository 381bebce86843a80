"""What the code that runs on one device of a mesh says of the others. Outside of a mesh of ours it all does nothing."""

import functools
import math
from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec

from mom_jax.platforms import platform
from mom_jax.sharding.mesh import AXES, COMPUTED, partition

RING = 8  # TPUs that one row has, at most

M = TypeVar("M", bound=nnx.Module)


def sizes() -> dict[str, int]:
    """The mesh axes over which the running code is mapped; empty outside of a mesh of ours."""
    mesh = jax.sharding.get_abstract_mesh()
    return dict(mesh.shape) if set(AXES) == set(mesh.manual_axes) else {}


def size(*axes: str) -> int:
    """Devices along mesh axes."""
    now = sizes()
    return math.prod(now.get(axis, 1) for axis in axes)


def total(x: Any, axes: tuple[str, ...] = AXES) -> Any:
    """The sum over the devices along mesh axes."""
    return jax.lax.psum(x, axes) if size(*axes) > 1 else x


def own_key(key: jax.Array | None) -> jax.Array | None:
    """A device's own random key."""
    return key if key is None or size(*AXES) == 1 else jax.random.fold_in(key, jax.lax.axis_index(AXES))


def gather_tokens(x: jax.Array, *axes: str) -> jax.Array:
    """The rows of all devices along mesh axes."""
    return jax.lax.all_gather(x, axes, axis=0, tiled=True) if size(*axes) > 1 else x


def scatter_tokens(x: jax.Array, *axes: str) -> jax.Array:
    """Rows that devices along mesh axes have a part of each, added up: every device gets its own."""
    return jax.lax.psum_scatter(x, axes, scatter_dimension=0, tiled=True) if size(*axes) > 1 else x


def modules_here(modules: int) -> int:
    """How many of a pool's modules this device has. The last may be padding, which nothing chooses."""
    return -(-modules // size("module"))


def sum_of_parts(x: jax.Array, axes: Sequence[str], whole: Sequence[int], shape: Sequence[int], axis: str) -> jax.Array:
    """The sum of `x` over the devices that divide the logical `axis` of an array of the shape `whole`, of which each
    has a part of the shape `shape`."""
    now, dimension = sizes(), list(axes).index(axis)
    over = partition(axes, whole, now)[dimension] if now and shape[dimension] < whole[dimension] else ()
    return jax.lax.psum(x, over) if over else x


def gather(x: jax.Array, axes: Sequence[str], whole: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
    """A shard of an array of the shape `whole`, made what a device computes with: see `COMPUTED`. What has been
    gathered before, which its shape tells, stays as it is.

    It travels, and is rounded, in `dtype`, which is the dtype that products will cast it to; its gradient travels in
    float32.
    """
    now = sizes()
    if not now:
        return x
    parts = [list(mesh_axes) for mesh_axes in partition(axes, whole, now)]
    uneven = axes[0] == "modules" and now["module"] > 1 and "module" not in parts[0]
    if uneven and x.shape[0] == whole[0]:
        x = _own_modules(x, parts)
    for dimension, (name, mesh_axes) in enumerate(zip(axes, parts, strict=True)):
        if mesh_axes and name not in COMPUTED and x.shape[dimension] < whole[dimension]:
            x = _gather(x, tuple(mesh_axes), dimension, jnp.dtype(dtype))
    return x


def _own_modules(x: jax.Array, parts: list[list[str]]) -> jax.Array:
    """This device's modules where there are not as many for each: the pool is padded. Changes `parts` with it."""
    here = modules_here(x.shape[0])
    padded = jnp.pad(x, [(0, here * size("module") - x.shape[0])] + [(0, 0)] * (x.ndim - 1))
    for dimension, mesh_axes in enumerate(parts):
        if "module" in mesh_axes:
            # A part of all modules for all of some; `module` is the last, so that parts of neighbours are adjacent.
            mesh_axes.remove("module")
            return jax.lax.all_to_all(padded, "module", split_axis=0, concat_axis=dimension, tiled=True)
    return jax.lax.dynamic_slice_in_dim(padded, jax.lax.axis_index("module") * here, here, 0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _gather(x: jax.Array, axes: tuple[str, ...], dimension: int, dtype: Any) -> jax.Array:
    return jax.lax.all_gather(x.astype(dtype), axes, axis=dimension, tiled=True).astype(x.dtype)


def _scatter(axes: tuple[str, ...], dimension: int, dtype: Any, _: None, d: jax.Array) -> tuple[jax.Array]:
    for axis in axes:
        for groups in _rings(size(axis)):
            d = jax.lax.psum_scatter(d, axis, scatter_dimension=dimension, tiled=True, axis_index_groups=groups)
    return (d,)


_gather.defvjp(lambda x, *static: (_gather(x, *static), None), _scatter)


def _rings(devices: int) -> list[list[list[int]] | None]:
    """The groups of devices along an axis among which to scatter, one after the other.

    Many TPUs lie in a plane, for which XLA makes an all-reduce of a reduce-scatter and sends twice as much. Along the
    rows of the plane and then along its columns it stays one (tests/sharding/test_collectives.py).
    """
    if devices <= RING or platform() != "tpu":
        return [None]
    columns = max(n for n in range(1, math.isqrt(devices) + 1) if devices % n == 0)
    table = [[row * columns + column for column in range(columns)] for row in range(devices // columns)]
    # Blocks of the array are numbered along the rows: first those for each row, then each device's own.
    return [[list(column) for column in zip(*table, strict=True)], table] if columns > 1 else [None]


def gathered(module: M, dtype: Any = jnp.float32) -> M:
    """`module` with all its parameters as a device computes with them."""
    if not sizes():
        return module
    graphdef, state = nnx.split(module)

    def use(param: Any) -> Any:
        return param.replace(gather(param[...], param.axes, param.whole, dtype))

    return nnx.merge(graphdef, jax.tree.map(use, state, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable)))


def total_gradient(gradient: Any, specs: Any) -> Any:
    """Parameters' gradients, of which every device has a part: the sum over the axes that do not divide an array, as
    `gather` has summed over the others."""

    def add(d: jax.Array, spec: PartitionSpec) -> jax.Array:
        divided = {axis for axes in spec if axes for axis in ((axes,) if isinstance(axes, str) else axes)}
        rest = tuple(axis for axis in AXES if axis not in divided)
        return total(d, rest)

    return jax.tree.map(add, gradient, specs)
