"""How a model lies on a mesh of devices, and the communication that its computation needs there.

The mesh has four axes. Every device has its own sequences of a batch, whatever the axes are; they differ in what else
they divide:

data    nothing: the parameters are there once for each of its positions
fsdp    parameters at rest; they are gathered for use
module  the modules of routed pools, in the computation too: rows travel to the devices that have their modules
tensor  the heads of attention and the inner width of FFNs, in the computation too

A training step runs under `jax.shard_map` over the whole mesh: code sees the shards that one device has, and says where
devices communicate by the functions below. Outside of such a mesh they do nothing. Since no two devices do the same
work, a gradient is the sum over all devices, and the collectives' plain transposes are right everywhere.
"""

from mom_jax.sharding.collectives import (
    gather,
    gather_tokens,
    gathered,
    modules_here,
    own_key,
    scatter_tokens,
    size,
    sum_of_parts,
    total,
    total_gradient,
)
from mom_jax.sharding.exchange import (
    Exchange,
    back,
    compiler_options,
    has_ragged,
    make_exchange,
    modules_received,
    there,
)
from mom_jax.sharding.gather_again import gathered_again
from mom_jax.sharding.mesh import (
    AXES,
    RULES,
    MeshConfig,
    batch_sharding,
    check_mesh,
    describe_mesh,
    make_mesh,
    on_devices,
    parameter_specs,
    partition,
    place_rows,
    replicated,
)

__all__ = [
    "AXES",
    "RULES",
    "Exchange",
    "MeshConfig",
    "back",
    "batch_sharding",
    "check_mesh",
    "compiler_options",
    "describe_mesh",
    "gather",
    "gather_tokens",
    "gathered",
    "gathered_again",
    "has_ragged",
    "make_exchange",
    "make_mesh",
    "modules_here",
    "modules_received",
    "on_devices",
    "own_key",
    "parameter_specs",
    "partition",
    "place_rows",
    "replicated",
    "scatter_tokens",
    "size",
    "sum_of_parts",
    "there",
    "total",
    "total_gradient",
]
