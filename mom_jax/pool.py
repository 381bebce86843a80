"""A pool of stacked modules applied to a selection: routed attention and the routed FFN.

T tokens are B·L flattened. The sum over a token's choices is the sum over rows (mom_jax/dispatch.py).
"""

import jax
import jax.numpy as jnp

from mom_jax import dispatch
from mom_jax.config import ModelConfig
from mom_jax.layers import ACTIVATIONS, KV, SublayerWeights, View, attend, dropout, normalise
from mom_jax.router import Selection, straight_through


def _multiplier(selection: Selection, config: ModelConfig) -> jax.Array:
    """The weights as they multiply. Called once a use: straight-through clamps the gradient of each use by itself."""
    return straight_through(selection.weight_TxK) if config.router.straight_through else selection.weight_TxK


def _weighted(rows: jax.Array, selection: Selection, plan: dispatch.Plan, config: ModelConfig) -> jax.Array:
    weight = dispatch.spread(_multiplier(selection, config), plan)[:, None]
    return (rows.astype(jnp.float32) * weight).astype(rows.dtype)


def routed_attention(
    weights: SublayerWeights,
    x: jax.Array,
    selection: Selection,
    view: View,
    config: ModelConfig,
    *,
    key: jax.Array | None,
    cache: KV | None,
) -> tuple[jax.Array, KV | None]:
    """The contribution of the chosen attention modules to x [B, L, D], and the cache; `weights` has a leading N.

    One attention over queries, keys and values summed over the chosen modules; the output projections are weighted.
    A token that chose nulls only adds nothing, but later tokens attend to its zero key and value.
    """
    batch, length, d = x.shape
    probability_key, output_key = (None, None) if key is None else jax.random.split(key)
    backend = dispatch.resolve(config.dispatch)
    plan = dispatch.make_plan(selection.index_TxK, config.num_attn_modules, backend)
    rows = dispatch.gather(normalise(x, config.layer_norm_epsilon).reshape(-1, d), plan)
    rows = dispatch.grouped_linear(rows, weights.first_kernel, weights.first_bias, plan, backend)
    if config.weighted_qkv:
        rows = _weighted(rows, selection, plan, config)
    qkv = dispatch.combine(rows, plan).reshape(batch, length, 3 * d)
    output, cache = attend(qkv, view, config, key=probability_key, cache=cache)
    rows = dispatch.gather(output.reshape(-1, d), plan)
    rows = dispatch.grouped_linear(rows, weights.last_kernel, weights.last_bias, plan, backend)
    y = dispatch.combine(_weighted(rows, selection, plan, config), plan)
    return dropout(y.reshape(x.shape), config.dropout.residual, output_key), cache


def routed_ffn(weights: SublayerWeights, x: jax.Array, selection: Selection, config: ModelConfig) -> jax.Array:
    """The contribution of the chosen FFN modules to x [B, L, D]; `weights` has a leading N."""
    backend = dispatch.resolve(config.dispatch)
    plan = dispatch.make_plan(selection.index_TxK, config.num_ffn_modules, backend)
    rows = dispatch.gather(normalise(x, config.layer_norm_epsilon).reshape(-1, x.shape[-1]), plan)
    rows = dispatch.grouped_linear(rows, weights.first_kernel, weights.first_bias, plan, backend)
    rows = ACTIVATIONS[config.activation](rows)
    rows = dispatch.grouped_linear(rows, weights.last_kernel, weights.last_bias, plan, backend)
    return dispatch.combine(_weighted(rows, selection, plan, config), plan).reshape(x.shape)
