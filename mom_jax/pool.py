"""A pool of stacked modules applied to a selection: routed attention and the routed FFN.

T tokens are B·L flattened. The sum over a token's choices is the sum over rows (mom_jax/dispatch).
"""

import functools
from typing import Any

import jax

from mom_jax import dispatch
from mom_jax.attention import KV, View, attend, dropout
from mom_jax.config import ModelConfig, Side
from mom_jax.dispatch import Linear, Plan, Pooled, weighted_linear
from mom_jax.layers import SublayerWeights, ffn, normalise
from mom_jax.remat import save
from mom_jax.router import Selection, straight_through

Pool = dict[str, Pooled]  # the parts of a pool that are used apart, by name


def make_pool(weights: SublayerWeights, config: ModelConfig, side: Side) -> Pool:
    """Stacked float32 weights [N, ...], made ready for the steps of a scan."""
    backend = dispatch.resolve(config)
    if side == "ffn":
        return {"ffn": dispatch.pooled(weights, backend)}
    parts = {"qkv": (weights.first_kernel, weights.first_bias), "out": (weights.last_kernel, weights.last_bias)}
    return {name: dispatch.pooled(part, backend) for name, part in parts.items()}


def sinks(pool: Pool) -> dict[str, Any]:
    """What a scan carries of a pool: where its gradients gather."""
    return {name: part.sink for name, part in pool.items()}


def with_sinks(pool: Pool, carried: dict[str, Any]) -> Pool:
    """The pool with the sinks that the scan carries."""
    return {name: part._replace(sink=carried[name]) for name, part in pool.items()}


def make_plan(selection: Selection, config: ModelConfig, side: Side) -> Plan:
    """The plan of a selection on one side."""
    backend = dispatch.resolve(config)
    return dispatch.make_plan(selection.index_TxK, config.modules(side), backend, config.capacity_factor)


def _multiplier(selection: Selection, config: ModelConfig) -> jax.Array:
    """The weights as they multiply. Called once a use: straight-through clamps the gradient of each use by itself."""
    return straight_through(selection.weight_TxK) if config.router.straight_through else selection.weight_TxK


def _unweighted(linear: Linear, rows: jax.Array, multiplier: jax.Array, weights: tuple) -> jax.Array:
    return linear(rows, *weights)


def routed_attention(
    pool: Pool,
    x: jax.Array,
    selection: Selection,
    plan: Plan,
    view: View,
    config: ModelConfig,
    *,
    key: jax.Array | None,
    cache: KV | None,
) -> tuple[jax.Array, KV | None, Pool]:
    """The contribution of the chosen attention modules to x [B, L, D], the cache, and the pool for its next use.

    One attention over queries, keys and values summed over the chosen modules; the output projections are weighted.
    A token that chose nulls only adds nothing, but later tokens attend to its zero key and value.
    """
    batch, length, d = x.shape
    probability_key, output_key = (None, None) if key is None else jax.random.split(key)
    routed = functools.partial(dispatch.routed, plan=plan, backend=dispatch.resolve(config))
    rows = normalise(x, config.layer_norm_epsilon).reshape(-1, d)
    body = weighted_linear if config.weighted_qkv else _unweighted
    with jax.named_scope("routed_qkv"):
        qkv, qkv_pool = routed(body, rows, pool["qkv"], _multiplier(selection, config))
    qkv = save(qkv).reshape(batch, length, -1)
    output, cache = attend(qkv, view, config, key=probability_key, cache=cache)
    with jax.named_scope("routed_out"):
        y, out_pool = routed(weighted_linear, output.reshape(-1, d), pool["out"], _multiplier(selection, config))
    y = dropout(save(y).reshape(x.shape), config.dropout.residual, output_key)
    return y, cache, {"qkv": qkv_pool, "out": out_pool}


def routed_ffn(
    pool: Pool, x: jax.Array, selection: Selection, plan: Plan, config: ModelConfig
) -> tuple[jax.Array, Pool]:
    """The contribution of the chosen FFN modules to x [B, L, D], and the pool for its next use."""
    rows = normalise(x, config.layer_norm_epsilon).reshape(-1, x.shape[-1])
    body = functools.partial(ffn, activation=config.activation)
    multiplier = _multiplier(selection, config)
    with jax.named_scope("routed_ffn"):
        y, used = dispatch.routed(body, rows, pool["ffn"], multiplier, plan, dispatch.resolve(config))
    return save(y).reshape(x.shape), {"ffn": used}
