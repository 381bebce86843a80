"""A chunk: a pool of modules, its routers, and the H steps that assemble them.

The steps are one `lax.scan`, so that compile time and program size do not depend on H. What differs from step to step
rides along as the scan's input: the prior, the keys and, where a side is ordered (each step has a module of its own),
the module's weights themselves, which then meet plain matrix products: no router, no sort. A pool whose parameters are
divided among devices is gathered before the scan, once for all its steps, and once more for its backward pass.

With a cache the steps follow one another without a scan, which would copy each step's keys and values in and out.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from mom_jax import pool
from mom_jax.assembly.observation import Observation, StepObserver
from mom_jax.assembly.sides import Carried, PlainSide, RoutedSide, RouterInputs, StepSide
from mom_jax.assembly.step import StepKeys, assembly_step
from mom_jax.assembly.weights import (
    ChunkWeights,
    ordered_at,
    ordered_steps,
    prepare_chunk,
    queries_at,
    queries_steps,
)
from mom_jax.attention import KV, View
from mom_jax.config import SIDES, ModelConfig, Side
from mom_jax.layers import FFN, INIT_STD, Attention, Sublayer, SublayerWeights
from mom_jax.remat import remat
from mom_jax.routers import Router, make_router, prior_table
from mom_jax.routing import Routing
from mom_jax.sharding import gathered_again


class Noise(NamedTuple):
    """Uniform noise for `gru_random` routers, [H, B, L, R] a side in a chunk, [S, H, B, L, R] in a model's call."""

    attention: jax.Array | None = None
    ffn: jax.Array | None = None


class StepInputs(NamedTuple):
    """What a step reads; for a scan every array has a leading axis H. Absent parts are None. exploration: the noise's
    standard deviation. cache: never scanned."""

    step: jax.Array
    prior: dict[Side, jax.Array | None]
    noise: dict[Side, jax.Array | None]
    exploration: jax.Array | None
    key: jax.Array | None
    exchange_key: jax.Array | None
    cache: KV | None


class StepOutputs(NamedTuple):
    """What a step leaves, and, with a leading axis H, all of them. cache: then a list of H."""

    routing: Routing
    cache: Any
    captured: dict[str, jax.Array]


class Chunk(nnx.Module):
    """A pool of modules, its routers, and the steps that assemble them."""

    def __init__(self, config: ModelConfig, *, ordered_out_std: float, rngs: nnx.Rngs):
        self.config = config

        def of(side: Side) -> dict[str, Any]:
            # An ordered pool is a stack of GPT-2 layers and starts as one.
            std = ordered_out_std if config.kind(side) == "ordered" else INIT_STD
            # Modules of a routed pool are divided among devices; layers that run in order are gathered one by one.
            name = "modules" if config.kind(side) == "routed" else "layers"
            return {"stack": {name: config.modules(side)}, "out_std": std, "rngs": rngs}

        self.attention = Attention(config, **of("attention"))
        self.ffn = FFN(config, **of("ffn"))
        for side in SIDES:
            if config.kind(side) == "routed":
                setattr(self, f"{side}_router", make_router(config, side, rngs=rngs))

    def __call__(
        self,
        x: jax.Array,
        view: View,
        observation: Observation,
        *,
        key: jax.Array | None = None,
        noise: Noise | None = None,
        step: jax.Array | int | None = None,
        segment_ids: jax.Array | None = None,
        prior: Mapping[Side, jax.Array] | None = None,
        cache: list[KV] | None = None,
        weights: ChunkWeights | None = None,
    ) -> tuple[jax.Array, StepOutputs]:
        """x [B, L, D] through H steps.

        key: draws dropout and router noise. step: training steps taken, for what is annealed. segment_ids: [B, L], the
        sequences of a row, which a capacity is for. prior: [H, C] a routed side, added to the configuration's. cache: a
        list of H. weights: those of `prepared()`, made before.
        """
        config, (valid, capture, exchange_key) = self.config, observation

        def keys(base: jax.Array | None) -> jax.Array | None:
            return None if base is None else jax.random.split(base, config.num_steps)

        exploration = None
        if config.router.noise and key is not None:
            exploration = jnp.broadcast_to(config.router.noise_at(step), (config.num_steps,))
        inputs = StepInputs(
            step=jnp.arange(config.num_steps, dtype=jnp.int32),
            prior={s: self._prior(s, step, prior) for s in SIDES},
            noise={"attention": noise and noise.attention, "ffn": noise and noise.ffn},
            exploration=exploration,
            key=keys(key),
            exchange_key=keys(exchange_key),
            cache=None,
        )

        rivals = None
        if config.has_capacity:
            rivals = jnp.where(valid, 0 if segment_ids is None else segment_ids, -1)

        def use(weights: ChunkWeights, given: tuple) -> tuple[jax.Array, StepOutputs]:
            x, view, valid, rivals, inputs, cache = given
            return self._run(weights, x, view, Observation(valid, capture), rivals, inputs, cache)

        given = x, view, valid, rivals, inputs, cache
        if weights is not None:
            return use(weights, given)
        graphdef, state = nnx.split(self)

        def prepare(state: nnx.State) -> ChunkWeights:
            return nnx.merge(graphdef, state).prepared()

        return gathered_again(prepare, use, state, given)

    def _prior(
        self, side: Side, step: jax.Array | int | None, added: Mapping[Side, jax.Array] | None
    ) -> jax.Array | None:
        """What is added to the side's logits, [H, C]; None where nothing is."""
        if self.config.kind(side) != "routed":
            return None
        table, more = prior_table(self.config, side, step), (added or {}).get(side)
        return more if table is None else table if more is None else table + more

    def prepared(self, *, decoding: str | None = None) -> ChunkWeights:
        """The weights as the steps use them, gathered where devices divide them.

        decoding: the pools' backend in steps without a scan and without gradients.
        """
        sublayers = {side: getattr(self, side) for side in SIDES}
        return prepare_chunk(self.config, sublayers, self._routers(), decoding)

    def _routers(self) -> dict[Side, Router]:
        return {side: getattr(self, f"{side}_router") for side in SIDES if self.config.kind(side) == "routed"}

    def _run(
        self,
        weights: ChunkWeights,
        x: jax.Array,
        view: View,
        observation: Observation,
        rivals: jax.Array | None,
        inputs: StepInputs,
        cache: list[KV] | None,
    ) -> tuple[jax.Array, StepOutputs]:
        """The steps; of this chunk's own parameters it uses the names only."""
        config, tokens = self.config, x.shape[0] * x.shape[1]
        routers = {side: nnx.merge(nnx.graphdef(own), weights.routers[side]) for side, own in self._routers().items()}
        # The scan carries no weights, which it would keep for every step, but where their gradients gather.
        carried = {
            side: Carried(router.initial_state(tokens), pool.sinks(weights.pools[side]))
            for side, router in routers.items()
        }
        left = jnp.zeros(tokens, bool) if config.has_exit else None

        def step(carry: tuple, given: tuple) -> tuple[tuple, StepOutputs]:
            (x, left, carried), (now, ordered, queries) = carry, given
            attention_key, ffn_key, *noise_keys = [None] * 4 if now.key is None else jax.random.split(now.key, 4)
            noise_key = dict(zip(SIDES, noise_keys, strict=True))

            def make(side: Side) -> StepSide:
                if side not in routers:
                    return PlainSide(config, self._plain(side, ordered, weights))
                own = RouterInputs(now.step, now.prior[side], now.noise[side], noise_key[side], now.exploration, rivals)
                return RoutedSide(config, side, weights.pools[side], routers[side], carried[side], own, queries)

            sides = {side: make(side) for side in SIDES}
            observer = StepObserver(config, observation, now.step, now.exchange_key)
            keys = StepKeys(attention_key, ffn_key)
            x, left, kv = assembly_step(
                x, left, sides["attention"], sides["ffn"], view, keys=keys, cache=now.cache, observer=observer
            )
            carried = {side: own.carried for side, own in sides.items() if isinstance(own, RoutedSide)}
            return (x, left, carried), StepOutputs(observer.routing, kv, observer.captured)

        carry: Any = (x, left, carried)
        if cache is None:
            given = inputs, ordered_steps(weights, config), queries_steps(weights, config)
            (x, *_), outputs = jax.lax.scan(remat(step, config, scanned=True), carry, given)
            return x, outputs
        steps = []
        for h in range(config.num_steps):
            now = jax.tree.map(lambda leaf, h=h: leaf[h], inputs)._replace(cache=cache[h])
            carry, outputs = step(carry, (now, ordered_at(weights, config, h), queries_at(weights, config, h)))
            steps.append(outputs)
        kvs = [outputs.cache for outputs in steps]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(outputs._replace(cache=None) for outputs in steps))
        return carry[0], stacked._replace(cache=kvs)

    def _plain(self, side: Side, ordered: dict[Side, SublayerWeights], weights: ChunkWeights) -> SublayerWeights:
        """The module of a side that has one for the step."""
        sublayer: Sublayer = getattr(self, side)
        return sublayer.gathered(ordered[side]) if side in ordered else weights.shared[side]
