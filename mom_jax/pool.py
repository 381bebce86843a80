"""A pool of stacked modules applied to a selection: routed attention and the routed FFN.

T tokens are B·L flattened. The sum over a token's choices is the sum over rows (mom_jax/dispatch).
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from mom_jax import dispatch, sharding
from mom_jax.attention import KV, View, attend, dropout
from mom_jax.checks import check_array
from mom_jax.config import ModelConfig, Side
from mom_jax.dispatch import ExchangePlan, Linear, Plan, PooledWeights, linear, weighted_linear
from mom_jax.layers import Projection, SublayerWeights, ffn, normalise
from mom_jax.remat import save
from mom_jax.routers import Selection, straight_through

Pool = dict[str, PooledWeights]  # the parts of a pool that are used apart, by name


def make_pool(weights: SublayerWeights, config: ModelConfig, side: Side, backend: str | None = None) -> Pool:
    """Stacked float32 weights [N, ...], made ready for the steps of a scan. backend: if not the configuration's."""
    backend = backend or dispatch.resolve(config)
    if side == "ffn":
        return {"ffn": dispatch.pooled(weights, backend, config.dtype)}
    parts = {"qkv": (weights.first_kernel, weights.first_bias), "out": (weights.last_kernel, weights.last_bias)}
    return {name: dispatch.pooled(part, backend, config.dtype) for name, part in parts.items()}


def sinks(pool: Pool) -> dict[str, Any]:
    """What a scan carries of a pool: where its gradients gather."""
    return {name: part.sink for name, part in pool.items()}


def without_sinks(pool: Pool) -> Pool:
    """The pool for uses without gradients."""
    return {name: part._replace(sink=None) for name, part in pool.items()}


def with_sinks(pool: Pool, carried: dict[str, Any]) -> Pool:
    """The pool with the sinks that the scan carries."""
    return {name: part._replace(sink=carried[name]) for name, part in pool.items()}


def _backend(pool: Pool, config: ModelConfig, tokens: int) -> str:
    if sharding.size("module") > 1:
        config = dataclasses.replace(config, capacity_factor=None)  # what is dropped does not travel
    return dispatch.for_decoding(next(iter(pool.values())), tokens) or dispatch.resolve(config)


def make_plan(
    pool: Pool, selection: Selection, valid_T: jax.Array, config: ModelConfig, side: Side
) -> Plan | ExchangePlan:
    """The plan of a selection on one side, of the tokens of the devices along `tensor`.

    valid_T: bool; where room is limited, or each module's weights are read if any token takes it, the others take none.
    """
    modules, factor = config.modules(side), config.capacity_factor
    backend = _backend(pool, config, valid_T.shape[0])
    index = selection.index_TxK
    if factor is not None or backend == "branched":
        index = jnp.where(valid_T[:, None], index, modules)
    index = sharding.gather_tokens(index, "tensor")
    if sharding.size("module") == 1:
        return dispatch.make_plan(index, modules, backend, factor)
    if factor is not None:
        index = dispatch.limited(index, modules, factor)
    return dispatch.exchange_plan(index, modules, backend, config.exchange_room)


def dropped(selection: Selection, plan: Plan | ExchangePlan, config: ModelConfig, side: Side) -> jax.Array:
    """How many of each token's choices of modules have no row, [T] float32: with a capacity, what did not fit."""
    if config.capacity_factor is None:
        return jnp.zeros(selection.index_TxK.shape[0], jnp.float32)
    chosen = sharding.gather_tokens(selection.index_TxK, "tensor") < config.modules(side)
    lost = chosen & ~plan.has_row
    # Devices along `tensor` have the same plan.
    count = lost.sum(1).astype(jnp.float32) / sharding.size("tensor")
    return sharding.scatter_tokens(count, "tensor")


def further_rounds(plan: Plan | ExchangePlan) -> jax.Array:
    """How many rounds after the first rows take to other devices' modules and back, float32 scalar."""
    return plan.further_rounds.astype(jnp.float32) if isinstance(plan, ExchangePlan) else jnp.zeros(())


def _multiplier(selection: Selection, config: ModelConfig) -> jax.Array:
    """The weights as they multiply, of all tokens of a plan. Called once a use: straight-through clamps the gradient of
    each use by itself."""
    weight = straight_through(selection.weight_TxK) if config.router.straight_through else selection.weight_TxK
    return sharding.gather_tokens(weight, "tensor")


def _unweighted(linear: Linear, rows: jax.Array, multiplier: jax.Array, weights: tuple) -> jax.Array:
    return linear(rows, *weights)


def routed_attention(
    pool: Pool,
    x: jax.Array,
    selection: Selection,
    plan: Plan | ExchangePlan,
    view: View,
    config: ModelConfig,
    *,
    key: jax.Array | None,
    cache: KV | None,
    queries: Projection | None = None,
) -> tuple[jax.Array, KV | None, Pool]:
    """The contribution of the chosen attention modules to x [B, L, D], the cache, and the pool for its next use.

    One attention over queries, keys and values summed over the chosen modules; the output projections are weighted.
    A token that chose nulls only adds nothing, but later tokens attend to its zero key and value. queries: what makes
    the queries and keys of all tokens where values alone are routed (`attention.routes`): the pool then has no others,
    and such a token's key is one like all others', its value zero.
    """
    _check("routed_attention", x, selection, config, "attention")
    length, d = x.shape[1:]
    probability_key, output_key = (None, None) if key is None else jax.random.split(key)
    routed = functools.partial(dispatch.routed, plan=plan, backend=_backend(pool, config, x.shape[0] * length))
    rows = sharding.gather_tokens(normalise(x, config.layer_norm_epsilon).reshape(-1, d), "tensor")
    weighted = config.weighted_qkv
    computation = weighted_linear if weighted else _unweighted
    with jax.named_scope("routed_qkv"):
        qkv, qkv_pool = routed(computation, rows, pool["qkv"], _multiplier(selection, config), weighted=weighted)
    qkv = save(qkv)  # with the heads of this device
    if queries is not None:
        with jax.named_scope("queries"):
            qkv = jnp.concatenate([save(linear(rows, *queries)), qkv], -1)
    output, cache = attend(qkv.reshape(-1, length, qkv.shape[1]), view, config, key=probability_key, cache=cache)
    rows = output.reshape(qkv.shape[0], -1)
    with jax.named_scope("routed_out"):
        y, out_pool = routed(weighted_linear, rows, pool["out"], _multiplier(selection, config))
    y = save(sharding.scatter_tokens(y, "tensor"))
    y = dropout(y.reshape(x.shape), config.dropout.residual, output_key)
    return y, cache, {"qkv": qkv_pool, "out": out_pool}


def routed_ffn(
    pool: Pool, x: jax.Array, selection: Selection, plan: Plan | ExchangePlan, config: ModelConfig
) -> tuple[jax.Array, Pool]:
    """The contribution of the chosen FFN modules to x [B, L, D], and the pool for its next use."""
    _check("routed_ffn", x, selection, config, "ffn")
    rows = normalise(x, config.layer_norm_epsilon).reshape(-1, x.shape[-1])
    rows = sharding.gather_tokens(rows, "tensor")
    computation = functools.partial(ffn, activation=config.activation)
    multiplier, backend = _multiplier(selection, config), _backend(pool, config, x.shape[0] * x.shape[1])
    with jax.named_scope("routed_ffn"):
        y, used = dispatch.routed(computation, rows, pool["ffn"], multiplier, plan, backend)
    return save(sharding.scatter_tokens(y, "tensor")).reshape(x.shape), {"ffn": used}


def _check(name: str, x: jax.Array, selection: Selection, config: ModelConfig, side: Side) -> None:
    check_array(f"{name}: x", x, (None, None, config.d_model), config.dtype)
    choices = (x.shape[0] * x.shape[1], config.choices(side))
    check_array(f"{name}: selection.index_TxK", selection.index_TxK, choices, jnp.int32)
    check_array(f"{name}: selection.weight_TxK", selection.weight_TxK, choices, jnp.float32)
