"""How a model is run when it is evaluated, and which tokens of a batch count."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from mom_jax.config import ModelConfig
from mom_jax.losses import IGNORE
from mom_jax.routers import router_class


def is_random(config: ModelConfig) -> bool:
    """Whether training draws random numbers."""
    routed = bool(config.routed_sides)
    return config.dropout.active or (routed and (config.router.noise > 0 or router_class(config).random))


def for_evaluation(config: ModelConfig) -> tuple[ModelConfig, jax.Array | None]:
    """(the model without dropout and exploration, and causal; the fixed key of routers that want noise in
    evaluation)."""
    noisy = config.routed_sides and config.router.kind == "gru_random" and config.router.noise_in_evaluation
    router = dataclasses.replace(config.router, noise=0.0)
    config = dataclasses.replace(config.causal(), dropout=type(config.dropout)(), router=router)
    return config, jax.random.key(0) if noisy else None


def counted(batch: Mapping[str, Any]) -> tuple[jax.Array | None, jax.Array]:
    """(the real tokens, bool [B, L] or None for all; the labels [B, L], IGNORE where they do not count).

    batch: `tokens` and, where there are any, `mask`, `segment_ids` (0 is padding) and `labels`, all [B, L]. A label
    counts where its token and the one before it, which predicts it, are real and of one segment: the first token of a
    document is nobody's label.
    """
    mask, segments, labels = batch.get("mask"), batch.get("segment_ids"), batch.get("labels", batch["tokens"])
    if mask is None and segments is None:
        return None, labels
    real = jnp.ones(labels.shape, bool) if mask is None else mask.astype(bool)
    if segments is None:
        segments = jnp.ones_like(labels)
    segments = jnp.where(real, segments, 0)
    before = jnp.pad(segments[:, :-1], ((0, 0), (1, 0)))
    return segments > 0, jnp.where((segments > 0) & (segments == before), labels, IGNORE)
