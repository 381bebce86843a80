"""A chunk's weights, prepared for its steps: layer norms folded in, and gathered where devices divide them."""

from typing import Any, NamedTuple

import jax
from flax import nnx

from mom_jax import pool
from mom_jax.config import SIDES, ModelConfig, Side
from mom_jax.layers import Sublayer, SublayerWeights
from mom_jax.router import Router
from mom_jax.sharding import gathered


class ChunkWeights(NamedTuple):
    """A chunk's weights as its steps use them, by side.

    pools, routers: of routed sides. ordered: the modules of sides whose steps use one each, stacked as the scan reads
    them, or, where there is no scan, one by one. shared: the one module of sides that have no other.
    """

    pools: dict[Side, pool.Pool]
    routers: dict[Side, nnx.State]
    ordered: dict[Side, SublayerWeights | list[SublayerWeights]]
    shared: dict[Side, SublayerWeights]


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
            parts = pool.make_pool(whole(sublayer, shards), config, side, decoding)
            weights.pools[side] = pool.without_sinks(parts) if decoding else parts
            weights.routers[side] = router.cast() if decoding else nnx.state(router)
        elif config.kind(side) == "ordered":
            weights.ordered[side] = shards  # used once each: gathered in the step that does
            if decoding:
                modules = range(config.modules(side))
                weights.ordered[side] = [whole(sublayer, _module(shards, i)) for i in modules]
        else:
            weights.shared[side] = whole(sublayer, _module(shards, 0))
    return weights


def ordered_at(weights: ChunkWeights, step: int) -> dict[Side, SublayerWeights]:
    """The modules of ordered sides at a step that no scan reads for."""
    return {
        side: modules[step] if isinstance(modules, list) else _module(modules, step)
        for side, modules in weights.ordered.items()
    }


def _module(stacked: Any, index: int) -> Any:
    return jax.tree.map(lambda w: w[index], stacked)
