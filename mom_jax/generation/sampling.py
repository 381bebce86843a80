"""From logits to tokens. Everything that users vary is a traced value: other settings compile nothing anew."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mom_jax.generation.settings import Settings, bucket

FEW = 1024  # candidates that are looked at first where all tokens may be drawn


class Values(NamedTuple):
    """The settings as arrays; top_k is the vocabulary's size and top_p 1 where all tokens may be drawn."""

    temperature: Any
    top_k: Any
    top_p: Any
    repetition_penalty: Any


def values(settings: Settings, vocab_size: int) -> Values:
    """The settings as numbers that a compiled program takes."""
    numbers = (settings.temperature, settings.top_p or 1.0, settings.repetition_penalty)
    temperature, top_p, penalty = (np.float32(number) for number in numbers)
    return Values(temperature, np.int32(settings.top_k or vocab_size), top_p, penalty)


def candidates(settings: Settings, vocab_size: int) -> int | None:
    """How many of the largest logits a draw has to sort: those that top_k leaves, in a bucket; None for none."""
    if settings.temperature == 0 or (settings.top_k is None and settings.top_p in (None, 1.0)):
        return None
    return min(vocab_size, bucket(settings.top_k or vocab_size))


def penalise(scores: jax.Array, seen: jax.Array, penalty: Any) -> jax.Array:
    """CTRL's repetition penalty (arXiv 1909.05858) on scores [B, V] of the tokens in `seen` [B, V]."""
    return jnp.where(seen, jnp.where(scores < 0, scores * penalty, scores / penalty), scores)


def restrict(logits: jax.Array, count: int, values: Values) -> jax.Array:
    """-inf but for the top_k most probable tokens [B, V], and of these for the fewest that have the probability top_p.

    Nucleus sampling (arXiv 1904.09751) as `transformers` has it: the token that reaches top_p is in. Equal logits are
    in or out together. count: top_k at most.
    """

    def least() -> jax.Array:
        """The smallest logit that stays [B, 1]."""
        largest = jax.lax.top_k(logits, count)[0]
        # Tokens beyond top_k as probable as the last one within stay.
        last = jnp.take(largest, values.top_k - 1, axis=1, mode="clip")[:, None]
        total = jnp.where(logits >= last, jnp.exp(logits - largest[:, :1]), 0.0).sum(-1, keepdims=True)
        return jnp.maximum(last, _nucleus(largest, total, values.top_p))

    if count == logits.shape[1] > FEW:
        # Sorting a whole vocabulary takes as long as a small model's step, and is hardly ever needed.
        largest = jax.lax.top_k(logits, FEW)[0]
        total = jnp.exp(logits - largest[:, :1]).sum(-1, keepdims=True)
        inside = jnp.exp(largest - largest[:, :1]).sum(-1, keepdims=True) >= values.top_p * total
        enough = inside.all() & (values.top_k >= count)
        smallest = jax.lax.cond(enough, lambda: _nucleus(largest, total, values.top_p), least)
    else:
        smallest = least()
    return jnp.where(logits >= smallest, logits, -jnp.inf)


def _nucleus(largest: jax.Array, total: jax.Array, top_p: Any) -> jax.Array:
    """The smallest logit [B, 1] that is needed to reach top_p. largest: [B, count], descending. total: [B, 1], the sum
    of all tokens' exponentials over the first one's."""
    probability = jnp.exp(largest - largest[:, :1]) / total
    before = jnp.cumsum(probability, -1) - probability
    needed = (before < top_p) | (top_p >= 1)  # rounding must not drop what is improbable
    return jnp.where(needed, largest, jnp.inf).min(-1, keepdims=True)


@functools.partial(jax.jit, static_argnames=("greedy", "count"), donate_argnames="seen")
def choose(
    logits: jax.Array,
    seen: jax.Array | None,
    values: Values,
    key: jax.Array,
    step: jax.Array,
    *,
    greedy: bool,
    count: int | None,
) -> tuple[jax.Array, jax.Array | None]:
    """Each row's next token [B] from its logits [B, V], or -1 where these are no numbers, and the tokens that it then
    has.

    seen: [B, V] bool, the tokens that a row has; None without a penalty. count: of `candidates`.
    """
    rows = jnp.arange(logits.shape[0], dtype=jnp.int32)
    good = jnp.isfinite(logits.max(-1))  # NaN is the largest of all
    if seen is not None:
        logits = penalise(logits, seen, values.repetition_penalty)
    if greedy:
        tokens = jnp.argmax(logits, -1).astype(jnp.int32)
    else:
        logits = logits / values.temperature
        if count is not None:
            logits = restrict(logits, count, values)
        tokens = jax.vmap(jax.random.categorical)(row_keys(key, step, rows), logits).astype(jnp.int32)
    tokens = jnp.where(good, tokens, -1)
    return tokens, None if seen is None else seen.at[rows, tokens].set(True)


def row_keys(key: jax.Array, step: jax.Array, rows: jax.Array) -> jax.Array:
    """A key for each row, that does not depend on the other rows."""
    return jax.vmap(lambda row: jax.random.fold_in(jax.random.fold_in(key, step), row))(rows)
