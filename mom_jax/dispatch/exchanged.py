"""The routed computation where devices along `module` have some modules each: the chosen rows travel there and back.

A device's buffers have room for a little more than its share of the rows, not for the case that all tokens of its group
choose its modules. The first round is like any other computation to differentiation and recomputation. What did not
find room takes further rounds in a loop, which hardly any step enters; of those the backward pass keeps nothing, and
goes through them once more.

Where exchanges run beside other work the tokens are computed in two halves, which need nothing of each other: while the
rows of one travel, those of the other are multiplied.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mom_jax.dispatch import grouped
from mom_jax.dispatch.computation import ModuleComputation, PooledWeights
from mom_jax.dispatch.plan import Plan, combine, gather, sort_plan, spread
from mom_jax.sharding import Exchange, back, has_ragged, make_exchange, modules_here, modules_received, there
from mom_jax.sharding import size as devices

LEAST = 1024  # rows of a half: of fewer, tiles of kernels would be filled up with empty ones


class Part(NamedTuple):
    """Of some tokens. home: of this device's choices over all modules. first: of the rows that it receives in the first
    round, over its own modules; each such row is a token with one choice."""

    home: Plan
    exchange: Exchange
    first: Plan


class ExchangePlan(NamedTuple):
    """The parts of a device's tokens, in order; all are as large."""

    parts: tuple[Part, ...]

    @property
    def choices(self) -> tuple[int, ...]:
        """(T, K)."""
        tokens, choices = self.parts[0].home.choices
        return len(self.parts) * tokens, choices

    @property
    def has_row(self) -> jax.Array:
        """Which choices have a row, bool [T, K]."""
        return jnp.concatenate([part.home.has_row for part in self.parts])

    @property
    def further_rounds(self) -> jax.Array:
        """Rounds after the first, int32."""
        return sum(part.exchange.rounds - 1 for part in self.parts) + jnp.int32(0)


def exchange_plan(index_TxK: jax.Array, num_modules: int, backend: str, room: float) -> ExchangePlan:
    """The plan of choices of the whole pool's modules, int32; an index of `num_modules` or more is a null."""
    everywhere = modules_here(num_modules) * devices("module")

    def part(index: jax.Array) -> Part:
        home = sort_plan(jnp.where(index < num_modules, index, everywhere), everywhere)
        exchange = make_exchange(home.sizes_N, index.size, room)
        return Part(home, exchange, _received_plan(exchange, 0, backend))

    tokens, choices = index_TxK.shape
    halves = 2 if has_ragged() and tokens % 2 == 0 and tokens * choices >= 2 * LEAST else 1
    return ExchangePlan(tuple(part(index) for index in jnp.split(index_TxK, halves)))


def _received_plan(exchange: Exchange, turn: jax.Array | int, backend: str) -> Plan:
    return grouped.make_plan(modules_received(exchange, turn)[:, None], exchange.counts.shape[2], backend)


def routed(
    computation: ModuleComputation,
    x_TxD: jax.Array,
    pool: PooledWeights,
    multiplier_TxK: jax.Array,
    plan: ExchangePlan,
    backend: str,
    *,
    weighted: bool,
) -> tuple[jax.Array, PooledWeights]:
    """Each token's sum of `computation` over its choices of all devices' modules, [T, E], and this device's pool for
    its next use. weighted: whether the computation multiplies; else no multiplier travels."""
    compute, ys = functools.partial(_one_round, computation, backend), []
    tokens = (jnp.split(x, len(plan.parts)) for x in (x_TxD, multiplier_TxK))
    for part, own_x, own_multiplier in zip(plan.parts, *tokens, strict=True):
        rows = gather(own_x, part.home)
        multiplier = spread(own_multiplier, part.home) if weighted else None
        y, pool = compute(rows, multiplier, pool, part.exchange, 0, part.first)
        y, sink = _further_rounds(compute, backend, y, rows, multiplier, pool.weights, pool.sink, part.exchange)
        pool = PooledWeights(pool.weights, sink)
        ys.append(combine(y, part.home))
    return jnp.concatenate(ys), pool


def _one_round(
    computation: ModuleComputation,
    backend: str,
    rows: jax.Array,
    multiplier: jax.Array | None,
    pool: PooledWeights,
    exchange: Exchange,
    turn: jax.Array | int,
    plan: Plan,
) -> tuple[jax.Array, PooledWeights]:
    """What the rows [P, D] of one round become, [P, E]; zeros for those of others."""
    received = there(rows, exchange, turn)
    weights = jnp.ones(exchange.received) if multiplier is None else there(multiplier, exchange, turn)
    y, pool = grouped.routed(computation, received, pool, weights[:, None], plan, backend)
    return back(y, exchange, turn, rows.shape[0]), pool


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _further_rounds(
    compute: Any,
    backend: str,
    y: jax.Array,
    rows: jax.Array,
    multiplier: jax.Array | None,
    weights: Any,
    sink: Any,
    exchange: Exchange,
) -> tuple[jax.Array, Any]:
    """y [P, E] of the first round with that of all others added, and the sink as it is."""

    def visit(turn: jax.Array, y: jax.Array) -> jax.Array:
        plan = _received_plan(exchange, turn, backend)
        return y + compute(rows, multiplier, PooledWeights(weights, sink), exchange, turn, plan)[0]

    with jax.named_scope("further_rounds"):
        return jax.lax.fori_loop(1, exchange.rounds, visit, y), sink


def _forward(compute: Any, backend: str, y: jax.Array, *given: Any) -> tuple:
    return _further_rounds(compute, backend, y, *given), given


def _backward(compute: Any, backend: str, residual: tuple, d: tuple) -> tuple:
    rows, multiplier, weights, sink, exchange = residual
    d_y, d_sink = d

    def visit(turn: jax.Array, carry: tuple) -> tuple:
        d_given, d_sink = carry
        plan = _received_plan(exchange, turn, backend)

        def one(given: tuple, sink: Any) -> tuple:
            y, pool = compute(*given, PooledWeights(weights, sink), exchange, turn, plan)
            return y, pool.sink

        _, pullback = jax.vjp(one, (rows, multiplier), sink)
        more, d_sink = pullback((d_y, d_sink))
        return jax.tree.map(jnp.add, d_given, more), d_sink

    zeros = jax.tree.map(jnp.zeros_like, (rows, multiplier))
    with jax.named_scope("further_rounds"):
        (d_rows, d_multiplier), d_sink = jax.lax.fori_loop(1, exchange.rounds, visit, (zeros, d_sink))
    return d_y, d_rows, d_multiplier, None, d_sink, None


_further_rounds.defvjp(_forward, _backward)
