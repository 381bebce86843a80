"""A chunk: H assembly steps over one pool of attention modules and one of FFN modules.

The steps are one `lax.scan`, so that compile time and program size do not depend on H. What differs from step to step
rides along as the scan's input: the prior, the keys and, where a side is ordered (step h uses module h), the module's
weights themselves, which then meet plain matrix products: no router, no sort. A pool whose parameters are divided among
devices is gathered before the scan, once for all its steps, and once more for its backward pass.

With a cache the steps follow one another without a scan, which would copy each step's keys and values in and out.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from mom_jax import pool
from mom_jax.attention import KV, View
from mom_jax.config import SIDES, ModelConfig, Side
from mom_jax.dispatch import Plan
from mom_jax.layers import FFN, INIT_STD, Attention, Sublayer, SublayerWeights, plain_attention, plain_ffn
from mom_jax.remat import remat, save
from mom_jax.router import Router, Selection, prior_table, select
from mom_jax.routing import Routing, collect, exchange
from mom_jax.sharding import gathered, regathered


class Noise(NamedTuple):
    """Uniform noise for `gru_random` routers, [H, B, L, R] a side in a chunk, [S, H, B, L, R] in a model's call."""

    attention: jax.Array | None = None
    ffn: jax.Array | None = None


class StepInputs(NamedTuple):
    """What a step reads; for a scan every array has a leading axis H. Absent parts are None. cache: never scanned."""

    step: jax.Array
    prior: dict[Side, jax.Array | None]
    noise: dict[Side, jax.Array | None]
    key: jax.Array | None
    exchange_key: jax.Array | None
    cache: KV | None


class Prepared(NamedTuple):
    """A chunk's weights as its steps use them, by side.

    pools, routers: of routed sides. ordered: the modules of sides whose steps use one each, stacked as the scan reads
    them, or, where there is no scan, one by one. shared: the one module of sides that have no other.
    """

    pools: dict[Side, pool.Pool]
    routers: dict[Side, nnx.State]
    ordered: dict[Side, SublayerWeights | list[SublayerWeights]]
    shared: dict[Side, SublayerWeights]


class StepOutputs(NamedTuple):
    """What a step leaves, and, with a leading axis H, all of them. cache: then a list of H."""

    routing: Routing
    cache: Any
    captured: dict[str, jax.Array]


class Chunk(nnx.Module):
    """A pool of modules, its routers, and the scan that assembles them."""

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
                setattr(self, f"{side}_router", Router(config, side, rngs=rngs))

    def __call__(
        self,
        x: jax.Array,
        view: View,
        valid: jax.Array,
        *,
        key: jax.Array | None = None,
        noise: Noise | None = None,
        step: jax.Array | int | None = None,
        exchange_key: jax.Array | None = None,
        cache: list[KV] | None = None,
        capture: tuple[str, ...] = (),
        weights: Prepared | None = None,
    ) -> tuple[jax.Array, StepOutputs]:
        """x [B, L, D] through H steps. valid: [B, L] bool, the tokens that statistics count. weights: those of
        `prepared()`, made before."""
        config = self.config

        def keys(base: jax.Array | None) -> jax.Array | None:
            return None if base is None else jax.random.split(base, config.num_steps)

        inputs = StepInputs(
            step=jnp.arange(config.num_steps, dtype=jnp.int32),
            prior={s: prior_table(config, s, step) if config.kind(s) == "routed" else None for s in SIDES},
            noise={"attention": noise and noise.attention, "ffn": noise and noise.ffn},
            key=keys(key),
            exchange_key=keys(exchange_key),
            cache=None,
        )
        if weights is not None:
            return self.assemble(weights, x, view, valid, inputs, cache, capture=capture)
        graphdef, state = nnx.split(self)

        def prepare(state: nnx.State) -> Prepared:
            return nnx.merge(graphdef, state).prepared()

        def assemble(prepared: Prepared, given: tuple) -> tuple[jax.Array, StepOutputs]:
            return self.assemble(prepared, *given, capture=capture)

        return regathered(prepare, assemble, state, (x, view, valid, inputs, cache))

    def prepared(self, *, decoding: str | None = None) -> Prepared:
        """The weights as the steps use them, gathered where devices divide them.

        decoding: the pools' backend in steps without a scan and without gradients.
        """
        config = self.config
        pools, routers, shared = {}, {}, {}
        ordered: dict[Side, Any] = {}

        def whole(sublayer: Sublayer, shards: SublayerWeights) -> SublayerWeights:
            weights = sublayer.gathered(shards)
            return weights.cast(config.dtype) if decoding else weights

        for side in SIDES:
            sublayer: Sublayer = getattr(self, side)
            shards = sublayer.shards()
            if config.kind(side) == "routed":
                router: Router = gathered(getattr(self, f"{side}_router"))
                pools[side] = pool.make_pool(whole(sublayer, shards), config, side, decoding)
                routers[side] = router.cast() if decoding else nnx.state(router)
                if decoding:
                    pools[side] = {name: part._replace(sink=None) for name, part in pools[side].items()}
            elif config.kind(side) == "ordered":
                ordered[side] = shards  # used once each: gathered in the step that does
                if decoding:
                    modules = range(config.modules(side))
                    ordered[side] = [whole(sublayer, jax.tree.map(lambda w, i=i: w[i], shards)) for i in modules]
            else:
                shared[side] = whole(sublayer, jax.tree.map(lambda w: w[0], shards))
        return Prepared(pools, routers, ordered, shared)

    def assemble(
        self,
        prepared: Prepared,
        x: jax.Array,
        view: View,
        valid: jax.Array,
        inputs: StepInputs,
        cache: list[KV] | None,
        *,
        capture: tuple[str, ...],
    ) -> tuple[jax.Array, StepOutputs]:
        """The steps; of this chunk's own parameters it uses the names only."""
        config, (batch, length, _) = self.config, x.shape
        pools = prepared.pools
        routers: dict[Side, Router] = {
            side: nnx.merge(nnx.graphdef(getattr(self, f"{side}_router")), state)
            for side, state in prepared.routers.items()
        }
        states = {side: router.initial_state(batch * length) for side, router in routers.items()}
        # The scan carries no weights, which it would keep for every step, but where their gradients gather.
        sinks = {side: pool.sinks(pools[side]) for side in pools}

        def body(carry: tuple, now_and_ordered: tuple) -> tuple[tuple, StepOutputs]:
            now, ordered = now_and_ordered
            x, states, sinks = carry
            states, sinks, statistics, captured = dict(states), dict(sinks), {}, {}
            attention_key, ffn_key, *noise_keys = [None] * 4 if now.key is None else jax.random.split(now.key, 4)
            noise_key = dict(zip(SIDES, noise_keys, strict=True))

            def plain(side: Side) -> SublayerWeights:
                sublayer: Sublayer = getattr(self, side)
                return sublayer.gathered(ordered[side]) if side in ordered else prepared.shared[side]

            def route(side: Side, x: jax.Array) -> tuple[Selection, Plan]:
                with jax.named_scope("router"):
                    logits, states[side] = _score(routers[side], x, states[side], now.noise[side], noise_key[side])
                selection, scores = select(logits, config, side, now.prior[side])
                if now.exchange_key is not None:
                    selection = exchange(
                        selection, jax.random.fold_in(now.exchange_key, side == "ffn"), valid.reshape(-1)
                    )
                with jax.named_scope("plan"):
                    plan = save(pool.make_plan(pools[side], selection, valid.reshape(-1), config, side))
                with jax.named_scope("statistics"):
                    lost = pool.dropped(selection, plan, config, side)
                    statistics[side] = collect(selection, scores, lost, now.step, valid.reshape(-1), config, side)
                if "routing" in capture:
                    shape = (batch, length, -1)
                    captured[f"{side}/scores"] = scores.reported_TxC.reshape(shape)
                    captured[f"{side}/index"] = selection.index_TxK.reshape(shape)
                    captured[f"{side}/weight"] = selection.weight_TxK.reshape(shape)
                    if states[side] is not None:
                        captured[f"{side}/state"] = states[side].reshape(shape)
                return selection, plan

            arguments: dict[str, Any] = {"key": attention_key, "cache": now.cache}
            if "attention" in pools:
                own_pool = pool.with_sinks(pools["attention"], sinks["attention"])
                chosen = route("attention", x)
                y, kv, used = pool.routed_attention(own_pool, x, *chosen, view, config, **arguments)
                sinks["attention"] = pool.sinks(used)
            else:
                y, kv = plain_attention(plain("attention"), x, view, config, **arguments)
            x = x + y
            if "ffn" in pools:
                own_pool = pool.with_sinks(pools["ffn"], sinks["ffn"])
                y, used = pool.routed_ffn(own_pool, x, *route("ffn", x), config)
                sinks["ffn"] = pool.sinks(used)
                x = x + y
            else:
                x = x + plain_ffn(plain("ffn"), x, config, key=ffn_key)
            if "hidden" in capture:
                captured["hidden"] = x
            routing = Routing(statistics.get("attention"), statistics.get("ffn"))
            return (x, states, sinks), StepOutputs(routing, kv, captured)

        carry: tuple = (x, states, sinks)
        if cache is None:
            (x, *_), outputs = jax.lax.scan(remat(body, config, scanned=True), carry, (inputs, prepared.ordered))
            return x, outputs
        steps = []
        for h in range(config.num_steps):
            now = jax.tree.map(lambda leaf, h=h: leaf[h], inputs)._replace(cache=cache[h])
            own = {
                side: modules[h] if isinstance(modules, list) else jax.tree.map(lambda w, h=h: w[h], modules)
                for side, modules in prepared.ordered.items()
            }
            carry, outputs = body(carry, (now, own))
            steps.append(outputs)
        kvs = [outputs.cache for outputs in steps]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(outputs._replace(cache=None) for outputs in steps))
        return carry[0], stacked._replace(cache=kvs)


def _score(
    router: Router, x: jax.Array, state: jax.Array | None, noise: jax.Array | None, key: jax.Array | None
) -> tuple[jax.Array, jax.Array | None]:
    """A router on x [B, L, D]: (logits [T, C], state). Noise is given, drawn from `key`, or its mean."""
    x = x.reshape(-1, x.shape[-1])
    if router.config.router.kind != "gru_random" or (noise is None and key is None):
        return router(x, state)
    shape = (x.shape[0], router.config.router.dim)
    if noise is None:
        assert key is not None
        noise = jax.random.uniform(key, shape)
    return router(x, state, noise.reshape(shape))
