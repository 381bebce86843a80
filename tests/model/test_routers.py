"""Routers beyond the oracle: the registry, exploration, the bias that balances, a start that preserves."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from small import NEVER, SMALL, assert_close, change, explicit, quick, random_ids, random_params, run

import mom_jax as mom
from mom_jax.analysis.cost import parameter_count
from mom_jax.analysis.router_cost import router_cost
from mom_jax.config import ChoiceConfig
from mom_jax.config.router import KINDS
from mom_jax.evaluation import for_evaluation, is_random
from mom_jax.fields import ConfigError
from mom_jax.interop.phases import from_vanilla
from mom_jax.routers import Router, RouterStep, adjusted, make_router, register, score, select
from mom_jax.sharding import make_mesh
from train.config import OptimConfig
from train.steps.optimizer import make_optimizer
from train.steps.state import init_state
from train.steps.train_step import train_step


@pytest.fixture
def own(monkeypatch):
    """A kind for one test, by the class it is given."""
    monkeypatch.setattr("mom_jax.routers.registry.KINDS", kinds := dict(KINDS))
    monkeypatch.setattr("mom_jax.config.router.KINDS", kinds)
    return register("own")


class Doubled(Router):
    """Scores the first C numbers of the residual stream; a step counts its calls."""

    def __init__(self, config, side, *, rngs):
        super().__init__(config, side, rngs=rngs)
        self.factor = nnx.Param(jnp.full((1, 1), 2.0))

    def initial_state(self, tokens):
        return {"calls": jnp.zeros((tokens, 1), jnp.int32)}

    def __call__(self, x_TxD, state, step):
        classes = self.config.classes(self.side)
        return self.factor[...] * x_TxD[:, :classes].astype(jnp.float32), {"calls": state["calls"] + 1}


def test_a_kind_of_ones_own_with_what_all_kinds_have(own):
    own(Doubled)
    config = change(SMALL, router={"kind": "own", "norm": "layer", "step_bias": 3.0}, balance={"bias_rate": 0.1})
    router = make_router(config, "ffn", rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (5, 16))
    logits, state = score(router, x, router.initial_state(5), RouterStep())
    centred = x - x.mean(-1, keepdims=True)
    want = 2 * centred / jnp.sqrt(jnp.square(centred).mean(-1, keepdims=True) + config.layer_norm_epsilon)
    assert_close(logits, want[:, :4])
    np.testing.assert_array_equal(state["calls"], np.ones((5, 1)))
    np.testing.assert_array_equal(router.step_bias[...], 3 * np.eye(3, 4))
    assert router.factor.axes == ("", "")
    params = random_params(config)
    output = run(config, params, random_ids(), capture=("routing",))
    np.testing.assert_array_equal(output.captured["ffn/state"]["calls"][0, :, 0, 0, 0], [1, 2, 3])
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == parameter_count(config).total


def test_routers_that_are_refused(own):
    class Wrong(Doubled):
        def __call__(self, x_TxD, state, step):
            return x_TxD[:, :3], state

    class Forgetful(Doubled):
        def __call__(self, x_TxD, state, step):
            return super().__call__(x_TxD, state, step)[0], {"calls": state["calls"][:, 0]}

    class Counted(Doubled):
        def __init__(self, config, side, *, rngs):
            super().__init__(config, side, rngs=rngs)
            self.calls = nnx.BatchStat(jnp.zeros(1))

    def scored(cls):
        KINDS_OWN = own(cls)
        router = make_router(change(SMALL, router={"kind": "own"}), "ffn", rngs=nnx.Rngs(0))
        assert isinstance(router, KINDS_OWN)
        return score(router, jnp.zeros((5, 16)), router.initial_state(5), RouterStep())

    with pytest.raises(AssertionError, match="Wrong: logits_TxC"):
        scored(Wrong)
    with pytest.raises(ConfigError, match=r"kind='own': is the name of .*Wrong already"):
        own(Forgetful)
    with pytest.raises(ConfigError, match="kind='my own': must be a plain word"):
        register("my own")
    for cls, error, message in (
        (Forgetful, AssertionError, r"Forgetful: the next state is \{'calls': \(\(5,\), 'int32'\)\}, and must be as"),
        (Counted, ConfigError, r"router\.kind='own': Counted\.calls is BatchStat; a router may have nnx.Param only"),
    ):
        from mom_jax.routers import registry

        registry.KINDS.pop("own")
        with pytest.raises(error, match=message):
            scored(cls)


@pytest.mark.parametrize("kind", [kind for kind, cls in KINDS.items() if cls.__module__.startswith("mom_jax")])
def test_products_are_as_many_as_the_cost_model_says(kind):
    config = change(SMALL, router={"kind": kind, "heads": 2})
    router = make_router(config, "ffn", rngs=nnx.Rngs(0))

    def call(x, state, h):
        return score(router, x, state, RouterStep(h))

    program = jax.make_jaxpr(call)(jnp.zeros((5, 16)), router.initial_state(5), jnp.int32(1))
    assert multiplications(program.jaxpr) == 5 * router_cost(config, "ffn").products


def multiplications(jaxpr):
    """Multiply-adds of all matrix products of a program."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += equation.outvars[0].aval.size * math.prod(shape[axis] for axis in contracted)
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            total += multiplications(inner) if hasattr(inner, "eqns") else 0
    return total


# Exploration.


def test_noise_ranks_in_training_only():
    config = change(SMALL, num_steps=1, router={"noise": 1.0, "noise_steps": 10})
    params, ids, key = random_params(config), random_ids(), jax.random.key(3)
    assert is_random(config)
    assert not is_random(change(SMALL, router={"noise": 0.0}))
    assert not is_random(change(config, attention=ChoiceConfig("ordered"), ffn=ChoiceConfig("ordered"), num_steps=3))
    assert for_evaluation(config)[0].router.noise == 0
    np.testing.assert_allclose([config.router.noise_at(step) for step in (None, 0, 4, 10, 11)], [1, 1, 0.6, 0, 0])
    assert change(config, router={"noise_steps": 0}).router.noise_at(99) == 1

    def routing(key, step):
        captured = run(config, params, ids, key=key, step=jnp.int32(step), capture=("routing",)).captured
        return {name: np.asarray(captured[f"attention/{name}"][0, 0]) for name in ("scores", "index", "weight")}

    clean, noisy, again, late = routing(None, 0), routing(key, 0), routing(key, 0), routing(key, 10)
    assert_close(noisy, again, atol=0, rtol=0)
    np.testing.assert_array_equal(late["index"], clean["index"])
    np.testing.assert_array_equal(noisy["scores"], clean["scores"])
    assert (noisy["index"] != clean["index"]).any()
    chosen = np.take_along_axis(clean["scores"], noisy["index"], -1)
    assert_close(noisy["weight"], chosen / chosen.sum(-1, keepdims=True))
    # The nudge is in logits: as strong as what it ranks, it decides.
    nudge = np.zeros((1, 4), np.float32)
    nudge[0, 2] = 1e3
    selection, _ = select(jnp.zeros((1, 4)), config, "ffn", nudge_TxC=jnp.asarray(nudge))
    np.testing.assert_array_equal(selection.index_TxK, [[2, 0]])


# Balance by a bias.


def test_the_bias_moves_by_the_sign_of_what_is_missing():
    config = change(SMALL, balance={"bias_rate": 0.5}, num_ffn_modules=4, num_attn_modules=4)
    bias = jnp.asarray([[0.0, 0, 0, 0, 0], [1, -1, 0, 0, 0]])
    choices = jnp.asarray([[30.0, 10, 10, 10, 99], [10, 10, 10, 10, 0]])
    # Centred over the modules: -0.5 + 0.5 · 3 is 1 in all.
    np.testing.assert_allclose(
        adjusted(bias, choices, config, "ffn"), [[-0.75, 0.25, 0.25, 0.25, 0], [1, -1, 0, 0, 0]], atol=1e-7
    )
    # What the prior never allows has no load to balance.
    config = change(config, ffn=explicit(*[(0, 0, NEVER, 0, 0)] * 3))
    np.testing.assert_allclose(adjusted(bias, choices, config, "ffn")[0], [-2 / 3, 1 / 3, 0, 1 / 3, 0], atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("over", ["batch", "micro_batch"])
def test_a_step_adjusts_it_by_the_whole_batchs_choices(over):
    config = change(SMALL, balance={"bias_rate": 0.25, "over": over}, num_steps=2, num_chunks=2, remat="none")
    params, ids = random_params(config), random_ids(4)
    batch = {"tokens": ids, "mask": jnp.asarray(np.arange(7)[None] < np.array([[7], [6], [3], [2]]))}
    optimizer = make_optimizer(OptimConfig(weight_decay=0.5), 10)
    step = functools.partial(train_step, config=config, optimizer=optimizer, accumulation=2, seed=0, mesh=make_mesh())
    state, report = quick(step)(init_state(params, optimizer), batch)
    for side in ("attention", "ffn"):
        choices = np.asarray(report.routing.sides()[side].choices_C).sum(1)
        assert choices.sum() == 2 * 2 * 2 * (7 + 6 + 3 + 2)
        for s in range(2):
            old, new = (p["chunks"][s][f"{side}_router"]["balance_bias"] for p in (params, state.params))
            moved = np.asarray(old)[:3] + 0.25 * np.sign(choices[s, :3].mean() - choices[s, :3])
            assert_close(new, np.append(moved - moved.mean(), 0.0).astype(np.float32))
    gone = dataclasses.replace(config, balance=dataclasses.replace(config.balance, bias_rate=0.0))
    assert "balance_bias" not in random_params(gone)["chunks"][0]["ffn_router"]
    assert (
        "balance_bias"
        not in random_params(change(config, ffn=ChoiceConfig("ordered_or_skip"), num_steps=3))["chunks"][0][
            "ffn_router"
        ]
    )


# Starts.


@pytest.mark.slow
@pytest.mark.parametrize(
    "router", [{"step_bias": 20.0}, {"step_bias": 20.0, "scoring": "sigmoid", "kind": "transformer"}]
)
def test_a_bias_of_the_steps_preserves_a_vanilla_model(router):
    """Beyond the last module it is for SKIP."""
    config = change(SMALL, router=router, top_k=1, num_steps=4)
    vanilla = config.vanilla()
    params = random_params(vanilla)
    fresh = mom.parameters(mom.MoM(config, rngs=nnx.Rngs(0)))
    started, _ = from_vanilla(vanilla, params, config, fresh)
    want, got = (run(c, p, random_ids()) for c, p in ((vanilla, params), (config, started)))
    assert_close(got.logits, want.logits, atol=1e-4)
    assert optax.tree.norm(started["chunks"][0]["ffn_router"]["step_bias"]) == 40
