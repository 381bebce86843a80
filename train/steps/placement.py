"""Arrays on the devices of a mesh: batches, parameters, and functions of what each device has."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mom_jax import sharding

BATCH, WHOLE = PartitionSpec(sharding.AXES), PartitionSpec()


def place_rows(rows: np.ndarray, mesh: Mesh) -> jax.Array:
    """A batch that every process has whole, on the devices of all."""
    return jax.make_array_from_callback(rows.shape, sharding.batch_sharding(mesh), lambda part: rows[part])


def place_share(rows: np.ndarray, mesh: Mesh) -> jax.Array:
    """A batch of which every process has its share, on the devices of all."""
    return jax.make_array_from_process_local_data(sharding.batch_sharding(mesh), rows)


def whole_params(params: dict[Any, Any], mesh: Mesh) -> dict[Any, Any]:
    """The parameters, whole on every device."""
    return jax.jit(lambda x: x, out_shardings=sharding.replicated(mesh))(params)


def placed(leaf: jax.ShapeDtypeStruct, mesh: Mesh, spec: PartitionSpec) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))


def on_devices(function: Callable, mesh: Mesh, *, in_specs: Any, out_specs: Any) -> Callable:
    """`function` of what each device has, on all devices of the mesh."""
    if mesh.size == 1:
        return function
    # The check would ask Pallas kernels along which axes their results vary, which they do not say.
    return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
