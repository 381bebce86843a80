"""The compiled programs: weights prepared once, prompts into a cache, one token further, rows of a cache dealt out."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mom_jax import dispatch
from mom_jax.assembly import Noise
from mom_jax.config import ModelConfig
from mom_jax.model import Cache, ModelWeights, Output, with_parameters
from mom_jax.platforms import platform

RAW = ("embed", "final_norm", "lm_head")  # parameters that are read as they are


class Prepared(NamedTuple):
    """Everything that decoding reads. raw: parameters by name, in the dtype in which they are used."""

    raw: dict[str, Any]
    weights: ModelWeights


@functools.partial(jax.jit, static_argnames="config")
def prepare(params: dict[str, Any], *, config: ModelConfig) -> Prepared:
    """From a model's parameters. What needs no change is not copied."""
    # Accelerators have grouped products, which want the modules stacked.
    weights = with_parameters(config, params).prepared("branched" if platform() == "cpu" else dispatch.resolve(config))
    raw = {name: params[name] for name in RAW if name in params}
    for name in ("embed", "lm_head"):
        if name in raw:
            raw[name] = jax.tree.map(lambda table: table.astype(config.dtype), raw[name])
    return Prepared(raw, weights)


@functools.partial(jax.jit, static_argnames=("config", "slots"))
def prefill(
    prepared: Prepared, ids: jax.Array, mask: jax.Array, key: jax.Array, *, config: ModelConfig, slots: int
) -> tuple[jax.Array, Cache]:
    """Left-padded ids [B, L] -> logits of what follows [B, V], and a cache of `slots` with their keys and values."""
    positions = jnp.maximum(jnp.cumsum(mask.astype(jnp.int32), 1) - 1, 0)
    model = with_parameters(config, prepared.raw)
    cache = model.init_cache(ids.shape[0], slots)
    noise = _noise(config, positions, key)
    return _last(model(ids, mask=mask, positions=positions, cache=cache, noise=noise, weights=prepared.weights))


@functools.partial(jax.jit, static_argnames="config", donate_argnames="cache")
def step(
    prepared: Prepared,
    cache: Cache,
    tokens: jax.Array,
    positions: jax.Array,
    active: jax.Array,
    key: jax.Array,
    *,
    config: ModelConfig,
) -> tuple[jax.Array, Cache]:
    """Each row's next token and its position [B] -> logits of what follows [B, V], and the cache with it.

    active: [B] bool; the other rows choose no modules, and their logits mean nothing.
    """
    model, noise = with_parameters(config, prepared.raw), _noise(config, positions[:, None], key)
    given: dict[str, Any] = {"mask": active[:, None], "positions": positions[:, None], "noise": noise}
    return _last(model(tokens[:, None], cache=cache, weights=prepared.weights, **given))


@jax.jit
def reorder(cache: Cache, rows: jax.Array) -> Cache:
    """The cache whose row i is row `rows[i]` of the given one."""
    kv, valid = jax.tree.map(lambda leaf: leaf[rows], (cache.kv, cache.valid))
    return Cache(kv, valid, cache.length)


def _last(output: Output) -> tuple[jax.Array, Cache]:
    assert output.cache is not None
    last = dataclasses.replace(output, hidden=output.hidden[:, -1:])
    return last.logits[:, 0], output.cache


def _noise(config: ModelConfig, positions: jax.Array, key: jax.Array) -> Noise | None:
    """What a `gru_random` model wants in evaluation where its configuration says so; each token's depends on its row
    and position only."""
    if not (config.router.kind == "gru_random" and config.router.noise_in_evaluation and config.num_chunks):
        return None

    def draw(row: jax.Array, position: jax.Array) -> jax.Array:
        own = jax.random.fold_in(jax.random.fold_in(key, row), position)
        return jax.random.uniform(own, (2, config.num_chunks, config.num_steps, config.router.dim))

    rows = jnp.arange(positions.shape[0], dtype=jnp.int32)
    drawn = jax.vmap(jax.vmap(draw, (None, 0)))(rows, positions)  # [B, L, 2, S, H, R]
    return Noise(*drawn.transpose(2, 3, 4, 0, 1, 5))
