"""Routing statistics in numbers that people read."""

from typing import Any

import jax
import numpy as np

from mom_jax.config import ModelConfig, Side
from mom_jax.routing import Routing, SideStats


def summary(routing: Routing, config: ModelConfig) -> dict[str, dict[str, Any]]:
    """Per routed side, over the tokens that `routing` sums over; steps are counted through all chunks.

    entropy: of the router's distribution, nats, per step. usage: the share of each class among the choices, per step.
    skip: the share of choices that fell on SKIP (0 without SKIP). off_diagonal: the share that fell on another module
    than step h's own module h. dropped: the share of the choices of real modules for which a module had no room (0
    without a capacity). taken: real modules that a token takes at a step, on average. further_rounds: all that the
    exchange of rows along a mesh's `module` axis took after the first ones.
    """
    return {side: _side(jax.device_get(stats), config, side) for side, stats in routing.sides().items()}


def _side(stats: SideStats, config: ModelConfig, side: Side) -> dict[str, Any]:
    choices = np.asarray(stats.choices_C, np.float64).reshape(-1, stats.choices_C.shape[-1])
    total = max(choices.sum(), 1.0)
    real = choices[:, : config.modules(side)].sum()
    tokens = np.maximum(np.asarray(stats.tokens, np.float64).reshape(-1), 1.0)
    return {
        "entropy": (np.asarray(stats.entropy, np.float64).reshape(-1) / tokens).tolist(),
        "usage": (choices / np.maximum(choices.sum(-1, keepdims=True), 1.0)).tolist(),
        "skip": float(choices[:, -1].sum() / total) if config.skip else 0.0,
        "off_diagonal": float(np.sum(stats.off_diagonal) / total),
        "dropped": float(np.sum(stats.dropped) / max(real, 1.0)),
        "taken": float(real / tokens.sum()),
        "further_rounds": float(np.sum(stats.further_rounds)),
    }
