"""The two sides of a chunk, attention and FFN, during one step.

A `RoutedSide` chooses modules from its pool by its router; a `PlainSide` has one module for the step, that of its order
or the only one there is. A routed side also holds what the scan carries from step to step: its router's state, and the
gradient sinks of its pool (`dispatch.PooledWeights`).
"""

from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from mom_jax import pool
from mom_jax.assembly.observation import StepObserver
from mom_jax.attention import KV, View
from mom_jax.config import ModelConfig, Side
from mom_jax.dispatch import ExchangePlan, Plan
from mom_jax.layers import Projection, SublayerWeights, plain_attention, plain_ffn
from mom_jax.remat import save
from mom_jax.routers import Router, RouterStep, Selection, score, select, unless_left


class Chosen(NamedTuple):
    """What every token takes, and the rows by module that follow from it."""

    selection: Selection
    plan: Plan | ExchangePlan


class Carried(NamedTuple):
    """What a routed side hands from step to step. state: the router's, any tree of arrays. sinks: where its pool's
    gradients gather, by the pool's parts."""

    state: Any
    sinks: dict[str, Any]


class RouterInputs(NamedTuple):
    """What a router reads at a step beside the residual stream. step: h, int32. prior: [C] float32 on its logits.
    noise: of `gru_random`, uniform on [0, 1), [B, L, R]; drawn from `key` where it is not given, else its mean.
    exploration: the standard deviation of the noise on what ranks, also drawn from `key`, without which there is none.
    rivals: [B, L] int32, which tokens compete for a capacity (`router.within_capacity`); None without one."""

    step: jax.Array
    prior: jax.Array | None
    noise: jax.Array | None
    key: jax.Array | None
    exploration: jax.Array | None
    rivals: jax.Array | None


class StepSide(Protocol):
    """A side during one step. chosen: what its `choose` has returned."""

    def choose(self, x: jax.Array, left: jax.Array | None, observer: StepObserver) -> tuple[Any, jax.Array | None]:
        """The choices of all tokens of x [B, L, D], and which of them have left then.

        left: bool [T], the tokens that have left the chunk; None where none can.
        """

    def attend(
        self, x: jax.Array, chosen: Any, view: View, *, key: jax.Array | None, cache: KV | None
    ) -> tuple[jax.Array, KV | None]:
        """The attention of x [B, L, D], to be added to it, and the cache."""

    def feed_forward(self, x: jax.Array, chosen: Any, *, key: jax.Array | None) -> jax.Array:
        """The FFN of x [B, L, D], to be added to it."""


class RoutedSide:
    """A side whose tokens choose modules. `carried` is what the next step takes over.

    queries: of attention whose values alone are routed, what makes the step's queries and keys.
    """

    def __init__(
        self,
        config: ModelConfig,
        side: Side,
        weights: pool.Pool,
        router: Router,
        carried: Carried,
        inputs: RouterInputs,
        queries: Projection | None = None,
    ):
        self.config, self.side, self.router, self.inputs = config, side, router, inputs
        self.queries = queries
        self.pool = pool.with_sinks(weights, carried.sinks)
        self.carried = carried

    def choose(self, x: jax.Array, left: jax.Array | None, observer: StepObserver) -> tuple[Chosen, jax.Array | None]:
        config, side, inputs, prior = self.config, self.side, self.inputs, self.inputs.prior
        with jax.named_scope("router"):
            step = RouterStep(inputs.step, inputs.key, inputs.noise)
            logits, state = score(self.router, x.reshape(-1, x.shape[-1]), self.carried.state, step)
        self.carried = self.carried._replace(state=state)
        if left is not None:
            prior = unless_left(left, prior, config.classes(side))
        table = getattr(self.router, "step_bias", None)
        # Parameters that were read from a file may be NumPy's, which no traced number can index.
        bias_C = None if table is None else jnp.asarray(table[...])[inputs.step]
        selection, scores = select(
            logits, config, side, prior, inputs.rivals, bias_C=bias_C, nudge_TxC=self._nudge(logits)
        )
        if left is not None and getattr(config, side).exit:
            left = left | (selection.index_TxK[:, 0] == config.classes(side) - 1)
        selection = observer.exchanged(side, selection)
        with jax.named_scope("plan"):
            plan = save(pool.make_plan(self.pool, selection, observer.valid_T, config, side))
        observer.routed(side, selection, scores, plan, state)
        return Chosen(selection, plan), left

    def _nudge(self, logits: jax.Array) -> jax.Array | None:
        """What is added to what ranks, [T, C]: noise to explore, and the bias that balances."""
        nudge, (key, deviation) = None, (self.inputs.key, self.inputs.exploration)
        if key is not None and deviation is not None:
            nudge = deviation * jax.random.normal(jax.random.fold_in(key, 1), logits.shape)
        balance = getattr(self.router, "balance_bias", None)
        if balance is not None:
            bias_TxC = jnp.broadcast_to(balance[...][None], logits.shape)
            nudge = bias_TxC if nudge is None else nudge + bias_TxC
        return nudge

    def attend(
        self, x: jax.Array, chosen: Chosen, view: View, *, key: jax.Array | None, cache: KV | None
    ) -> tuple[jax.Array, KV | None]:
        y, cache, used = pool.routed_attention(
            self.pool, x, *chosen, view, self.config, key=key, cache=cache, queries=self.queries
        )
        self._hand_on(used)
        return y, cache

    def feed_forward(self, x: jax.Array, chosen: Chosen, *, key: jax.Array | None) -> jax.Array:
        # Routed FFNs have no dropout, as in the official code.
        y, used = pool.routed_ffn(self.pool, x, *chosen, self.config)
        self._hand_on(used)
        return y

    def _hand_on(self, used: pool.Pool) -> None:
        self.carried = self.carried._replace(sinks=pool.sinks(used))


class PlainSide:
    """A side with one module for the step: nothing to choose, nothing to carry."""

    def __init__(self, config: ModelConfig, weights: SublayerWeights):
        self.config, self.weights = config, weights

    def choose(self, x: jax.Array, left: jax.Array | None, observer: StepObserver) -> tuple[None, jax.Array | None]:
        return None, left

    def attend(
        self, x: jax.Array, chosen: None, view: View, *, key: jax.Array | None, cache: KV | None
    ) -> tuple[jax.Array, KV | None]:
        return plain_attention(self.weights, x, view, self.config, key=key, cache=cache)

    def feed_forward(self, x: jax.Array, chosen: None, *, key: jax.Array | None) -> jax.Array:
        return plain_ffn(self.weights, x, self.config, key=key)
