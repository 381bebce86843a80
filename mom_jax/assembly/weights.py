"""A chunk's weights, prepared for its steps: layer norms folded in, and gathered where devices divide them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from mom_jax import pool
from mom_jax.config import SIDES, ModelConfig, Side
from mom_jax.layers import Attention, Projection, Sublayer, SublayerWeights
from mom_jax.routers import Router
from mom_jax.sharding import gathered


class ChunkWeights(NamedTuple):
    """A chunk's weights as its steps use them, by side.

    pools, routers: of routed sides. ordered: the modules of sides whose steps use one each, stacked, or, where there is
    no scan, one by one. shared: the one module of sides that have no other. queries: where values alone are routed,
    what makes the queries and keys, stacked by module or, where there is no scan, one by one; else None.
    """

    pools: dict[Side, pool.Pool]
    routers: dict[Side, nnx.State]
    ordered: dict[Side, SublayerWeights | list[SublayerWeights]]
    shared: dict[Side, SublayerWeights]
    queries: Projection | list[Projection] | None = None


def prepare_chunk(
    config: ModelConfig, sublayers: dict[Side, Sublayer], routers: dict[Side, Router], decoding: str | None
) -> ChunkWeights:
    """The weights of a chunk's sublayers and routers, gathered where devices divide them.

    decoding: the pools' backend in steps without a scan and without gradients.
    """
    weights = ChunkWeights({}, {}, {}, {})

    def whole(sublayer: Sublayer, shards: SublayerWeights) -> SublayerWeights:
        gathered_weights = sublayer.gathered(shards)
        return gathered_weights.cast(config.dtype) if decoding else gathered_weights

    for side in SIDES:
        sublayer = sublayers[side]
        shards = sublayer.shards()
        if config.kind(side) == "routed":
            router: Router = gathered(routers[side])
            if side == "attention" and config.routes_values:
                assert isinstance(sublayer, Attention)
                weights = weights._replace(queries=_queries(config, sublayer.queries(shards), decoding))
                shards = sublayer.values(shards)
            parts = pool.make_pool(whole(sublayer, shards), config, side, decoding)
            weights.pools[side] = pool.without_sinks(parts) if decoding else parts
            weights.routers[side] = router.cast() if decoding else nnx.state(router)
        elif config.kind(side) == "ordered":
            weights.ordered[side] = shards  # gathered in the step that uses one
            if decoding:
                modules = range(config.modules(side))
                weights.ordered[side] = [whole(sublayer, _module(shards, i)) for i in modules]
        else:
            weights.shared[side] = whole(sublayer, _module(shards, 0))
    return weights


def _queries(config: ModelConfig, stacked: Projection, decoding: str | None) -> Projection | list[Projection]:
    if not decoding:
        return stacked
    stacked = stacked._replace(kernel=stacked.kernel.astype(config.dtype))
    return [_module(stacked, i) for i in range(config.modules("attention"))]


def queries_steps(weights: ChunkWeights, config: ModelConfig) -> Projection | None:
    """What makes the queries and keys of each step, stacked by step as a scan reads them."""
    return None if weights.queries is None else _by_step(config, "attention", weights.queries)


def queries_at(weights: ChunkWeights, config: ModelConfig, step: int) -> Projection | None:
    """The same of a step that no scan reads for."""
    return None if weights.queries is None else _at(config, "attention", weights.queries, step)


def ordered_steps(weights: ChunkWeights, config: ModelConfig) -> dict[Side, SublayerWeights]:
    """The modules of ordered sides, stacked by step as a scan reads them."""
    return {side: _by_step(config, side, modules) for side, modules in weights.ordered.items()}


def ordered_at(weights: ChunkWeights, config: ModelConfig, step: int) -> dict[Side, SublayerWeights]:
    """The modules of ordered sides at a step that no scan reads for."""
    return {side: _at(config, side, modules, step) for side, modules in weights.ordered.items()}


def _by_step(config: ModelConfig, side: Side, stacked: Any) -> Any:
    """What is stacked by module, stacked by step.

    Where step h has module h it is as it is; under another schedule a copy, with as many modules as steps, and the
    gradients of a module's steps add up.
    """
    schedule = config.schedule(side)
    return stacked if schedule == tuple(range(config.modules(side))) else _module(stacked, jnp.array(schedule))


def _at(config: ModelConfig, side: Side, modules: Any, step: int) -> Any:
    """What a step's own module has of what is stacked by module, or listed."""
    index = config.schedule(side)[step]
    return modules[index] if isinstance(modules, list) else _module(modules, index)


def _module(stacked: Any, index: Any) -> Any:
    return jax.tree.map(lambda w: w[index], stacked)
