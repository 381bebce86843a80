"""What a router costs: parameters, products, and what training keeps of it. Letters as in mom_jax/config."""

import functools
import math
from typing import NamedTuple

import jax
from flax import nnx

from mom_jax.config import ModelConfig, Side
from mom_jax.routers import Router, has_balance_bias, make_router


class RouterCost(NamedTuple):
    """Of one router.

    parameters: how many it has. active: those that one step uses. products: multiply-adds of a token at a step.
    Numbers a token and step that training holds: scored, its logits and the state that is handed on; kept, what its
    backward pass needs beside these without recomputation; saved, with `remat="dots"`.
    """

    parameters: int = 0
    active: int = 0
    products: int = 0
    scored: int = 0
    kept: int = 0
    saved: int = 0


def router_cost(config: ModelConfig, side: Side) -> RouterCost:
    """Of the side's router in a chunk; all 0 where it has none."""
    if config.kind(side) != "routed":
        return RouterCost()
    d, r, c, h = config.d_model, config.router.dim, config.classes(side), config.num_steps
    scores = RouterCost(r * c + c, r * c + c, r * c, c)
    kind = config.router.kind
    if kind == "linear":
        cost = RouterCost(d * c + c, d * c + c, d * c, c)
    elif kind == "mlp":
        cost = _plus(scores, d * r, r, kept=r, saved=r)
    elif kind in ("gru", "gru_dev", "gru_random", "hierarchical"):
        gates = 4 if kind == "gru_random" else 3
        cost = _plus(scores, (d + r) * gates * r, 2 * gates * r, state=r, kept=2 * gates * r, saved=gates * r)
    elif kind == "mingru":
        cost = _plus(scores, d * 2 * r, 2 * r, state=r, kept=4 * r, saved=2 * r)
    elif kind == "transformer":
        # Four maps of attention, two of the FFN; a head's logits and sums over the H entries are R wide.
        heads = config.router.heads
        cost = _plus(
            scores,
            d * r + 8 * r * r,
            5 * r,
            state=h * r,
            kept=(12 + 2 * heads) * r + 2 * heads * h,
            saved=(6 + heads) * r,
        )
        cost = cost._replace(
            parameters=cost.parameters + h * r, active=cost.active + r, products=cost.products + 2 * heads * h * r
        )
    else:
        return _of_ones_own(config, side)
    # What `make_router` adds.
    bias, balance = config.router.step_bias is not None, has_balance_bias(config, side)
    return cost._replace(
        parameters=cost.parameters + bias * h * c + balance * c, active=cost.active + bias * c + balance * c
    )


def _plus(
    scores: RouterCost, matrices: int, biases: int, *, state: int = 0, kept: int = 0, saved: int = 0
) -> RouterCost:
    """The cost of a router with the last map `scores` and, before it, so many parameters."""
    return RouterCost(
        scores.parameters + matrices + biases,
        scores.active + matrices + biases,
        scores.products + matrices,
        scores.scored + state,
        kept,
        saved,
    )


@functools.cache
def _of_ones_own(config: ModelConfig, side: Side) -> RouterCost:
    """Of a kind that is known by its class alone: every parameter is used at a step, those with two axes or more are
    matrices, and the backward pass keeps what the call makes of them, one row each."""
    router: Router = nnx.eval_shape(lambda: make_router(config, side, rngs=nnx.Rngs(0)))
    shapes = [leaf.shape for leaf in jax.tree.leaves(nnx.state(router, nnx.Param))]
    parameters, matrices = (sum(map(math.prod, sizes)) for sizes in (shapes, [s for s in shapes if len(s) > 1]))
    state = sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(lambda: router.initial_state(1))))
    widths = sum(shape[-1] for shape in shapes if len(shape) > 1)
    if config.router.step_bias is not None:
        matrices -= config.num_steps * config.classes(side)
    return RouterCost(parameters, parameters, matrices, config.classes(side) + state, widths, widths)
