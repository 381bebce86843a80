"""Attention by einsums that keep the probabilities of all pairs for the backward pass: the oracle.

Dropout and caches use it. q [B, h, L, d], k and v [B, h, M, d] -> [B, h, L, d].
"""

import jax
import jax.numpy as jnp

from mom_jax.attention.view import View


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zeroes entries with probability `rate` and scales the others up; without a key nothing happens."""
    if key is None or rate == 0:
        return x
    keep = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(keep, x / (1 - rate), jnp.zeros_like(x))


def plain(q: jax.Array, k: jax.Array, v: jax.Array, view: View, rate: float, key: jax.Array | None) -> jax.Array:
    """Attention of q [B, h, L, d] over k, v [B, h, M, d], [B, h, L, d] in their dtype; `rate` of the probabilities are
    dropped where there is a `key`."""
    p, total, _ = exponentials(q, k, view.visible)
    return jnp.einsum("bhlm,bhmd->bhld", dropout(p / total, rate, key).astype(v.dtype), v)


def scores(q: jax.Array, k: jax.Array) -> jax.Array:
    """q · k / sqrt(d), [B, h, L, M] float32."""
    return jnp.einsum("bhld,bhmd->bhlm", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5


def exponentials(q: jax.Array, k: jax.Array, visible: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """exp(logits - m) [B, h, L, M], its sum and m [B, h, L, 1]; where nothing is visible zeros, and a sum of 1."""
    logits, visible = scores(q, k), visible[:, None]
    largest = jax.lax.stop_gradient(jnp.where(visible, logits, jnp.finfo(jnp.float32).min).max(-1, keepdims=True))
    p = jnp.exp(jnp.where(visible, logits - largest, -jnp.inf))
    total = p.sum(-1, keepdims=True)
    return p, jnp.where(total > 0, total, 1.0), largest
