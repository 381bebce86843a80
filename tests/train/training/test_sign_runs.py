"""Tiny runs that are built to fail, each in its own way, give that way's sign; a healthy one gives none.

They start from parameters with which routing spreads, as it does in larger models after some training. What fails is
built into these where that is possible: so most runs share what is compiled.
"""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
import tiny
from small import change, random_params

from mom_jax.analysis.signs import SignsConfig
from train.config import AnalysisConfig, CheckpointConfig, OptimConfig, Phase
from train.reporting import metrics
from train.steps.optimizer.names import path_name
from train.training import initial_state, loop

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("shared_steps")]

STEPS, EVERY = 20, 5
SIDES = ("attention", "ffn")


def signs(folder, monkeypatch, *, build=lambda name, x: x, optim=None, analysed=True, **model):
    """The signs of a run of one phase. build: (path, parameter) -> the parameter that the run starts with; None: as
    initialised. analysed: whether modules and routes are, which compiles for seconds."""
    config = tiny.config(folder)
    small = change(config.model, num_attn_modules=4, num_ffn_modules=4)
    phase = Phase("mom", STEPS, optim=OptimConfig(**({"learning_rate": 3e-3} | (optim or {}))))
    fields = {"model": change(small, **model), "phases": (phase,), "evaluate_every": EVERY}
    fields |= {"checkpoint": CheckpointConfig(every=STEPS), "signs": SignsConfig(warmup=EVERY, window=EVERY)}
    fields |= {"analysis": AnalysisConfig(every=EVERY * analysed, tokens=512)}
    config = dataclasses.replace(config, **fields)

    def fresh(model, seed, mesh):
        params = random_params(model, 4)  # one with which both sides' routers tell the steps apart
        return jax.tree_util.tree_map_with_path(lambda path, x: build(path_name(path), x), params)

    if build is not None:  # else as parameters are initialised
        monkeypatch.setattr(initial_state, "fresh_params", fresh)
    assert loop.train(config) is None
    records = metrics.read(folder / "run" / metrics.FILE)
    return {(r["sign"], r["side"]) for r in records if r["kind"] == "sign"}


def favoured(classes):
    """Routers to which these classes are far ahead of the others."""
    return lambda name, x: x.at[jnp.array(classes)].add(30) if name.endswith("router/score_bias") else x


def alike(name, x):
    """Modules that are all one."""
    pooled = name.startswith("chunks/") and "router" not in name
    return jnp.repeat(x[:1], len(x), 0) if pooled else x


def updates(input_bias):
    """Where a GRU's update gates are."""
    return jnp.arange(len(input_bias)) // (len(input_bias) // 3) == 1


def without_steps(name, x):
    """Routers without a memory, whose inputs hardly change from step to step."""
    if name.endswith("router/state_kernel"):
        return jnp.zeros_like(x)
    if name.endswith("router/input_bias"):
        return jnp.where(updates(x), -30.0, x)
    return 100 * x if name == "embed/positions" else x


WAYS = {
    "healthy": ({}, set()),
    "collapse": ({"build": favoured([0, 1])}, {("collapse", side) for side in SIDES}),
    "skip": ({"build": favoured([4])}, {("skip", side) for side in SIDES}),
    "alike": ({"build": alike}, {("similarity", side) for side in SIDES}),
    "without_steps": ({"build": without_steps}, {("step", side) for side in SIDES}),
    "churn": ({"optim": {"schedule": "constant", "router_multiplier": 30.0}}, {("churn", "ffn")}),
    "fast": ({"optim": {"learning_rate": 3.0}, "analysed": False}, {("loss", None)}),
    "still": (
        {"build": None, "optim": {"router_multiplier": 0.0}, "analysed": False},
        {("learning", side) for side in SIDES},
    ),
    "balance": ({"balance": {"weight": 10.0}, "analysed": False}, {("balance", None)}),
    "by_step": (
        {"attention": {"preference": 90.0}, "ffn": {"preference": 90.0}},
        {("token", side) for side in (*SIDES, None)},
    ),
    "trap": (
        {"top_k": 1, "router": {"weights": "renormalised"}, "balance": {"weight": 0.0}, "analysed": False},
        {("learning", side) for side in SIDES},
    ),
}
RARE = ("fast", "still", "balance", "by_step")  # the rules themselves are tested on stored logs


@pytest.mark.parametrize(
    "way", [pytest.param(way, marks=pytest.mark.exhaustive if way in RARE else ()) for way in WAYS]
)
def test_a_run_gives_the_sign_of_its_failure(way, tmp_path, monkeypatch):
    fields, want = WAYS[way]
    found = signs(tmp_path, monkeypatch, **fields)
    assert found >= want
    if way == "healthy":
        assert not found
