"""Arrays on the devices of a mesh: batches and parameters."""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mom_jax import sharding

BATCH, WHOLE = PartitionSpec(sharding.AXES), PartitionSpec()


def place_share(rows: np.ndarray, mesh: Mesh) -> jax.Array:
    """A batch of which every process has its share, on the devices of all."""
    return jax.make_array_from_process_local_data(sharding.batch_sharding(mesh), rows)


def whole_params(params: dict[Any, Any], mesh: Mesh) -> dict[Any, Any]:
    """The parameters, whole on every device."""
    return jax.jit(lambda x: x, out_shardings=sharding.replicated(mesh))(params)


def placed(leaf: jax.ShapeDtypeStruct, mesh: Mesh, spec: PartitionSpec) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))
