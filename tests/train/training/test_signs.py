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
from train.steps.optimizer import path_name
from train.training import initial_state, loop

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("shared_steps")]

STEPS, EVERY = 20, 5
SIDES = ("attention", "ffn")


def signs(folder, monkeypatch, *, build=None, optim=None, **model):
    """The signs of a run of one phase. build: (path, parameter) -> the parameter that the run starts with."""
    config = tiny.config(folder)
    small = change(config.model, num_attn_modules=4, num_ffn_modules=4)
    phase = Phase("mom", STEPS, optim=OptimConfig(**({"learning_rate": 3e-3} | (optim or {}))))
    fields = {"model": change(small, **model), "phases": (phase,), "evaluate_every": EVERY}
    fields |= {"checkpoint": CheckpointConfig(every=STEPS), "analysis": AnalysisConfig(every=EVERY, tokens=64)}
    fields |= {"signs": SignsConfig(warmup=EVERY, window=EVERY)}
    config = dataclasses.replace(config, **fields)

    def fresh(model, seed, mesh):
        params = random_params(model, seed)
        return (
            params if build is None else jax.tree_util.tree_map_with_path(lambda p, x: build(path_name(p), x), params)
        )

    if build is not standard:
        monkeypatch.setattr(initial_state, "fresh_params", fresh)
    assert loop.train(config) is None
    records = metrics.read(folder / "run" / metrics.FILE)
    return {(r["sign"], r["side"]) for r in records if r["kind"] == "sign"}


def standard(name, value):
    """As parameters are initialised."""
    raise AssertionError


def favoured(classes):
    """Routers to which these classes are far ahead of the others."""
    return lambda name, x: x.at[jnp.array(classes)].add(30) if name.endswith("router/score_bias") else x


def alike(name, x):
    """Modules that are all one."""
    pooled = name.startswith("chunks/") and "router" not in name
    return jnp.repeat(x[:1], len(x), 0) if pooled else x


def without_steps(name, x):
    """Routers without a memory, and modules that hardly change what they read."""
    if name.endswith("router/state_kernel"):
        return jnp.zeros_like(x)
    if name.endswith("router/input_bias"):
        update = jnp.arange(len(x)) // (len(x) // 3) == 1
        return jnp.where(update, -30.0, x)
    pooled = name.startswith("chunks/") and "router" not in name
    return x * 1e-3 if pooled and "out_" in name else x


WAYS = {
    "healthy": ({}, set()),
    "collapse": ({"build": favoured([0, 1])}, {("collapse", side) for side in SIDES}),
    "skip": ({"build": favoured([4])}, {("skip", side) for side in SIDES}),
    "alike": ({"build": alike}, {("similarity", side) for side in SIDES}),
    "without_steps": ({"build": without_steps}, {("step", side) for side in SIDES}),
    "churn": ({"optim": {"router_multiplier": 300.0}}, {("churn", side) for side in SIDES}),
    "fast": ({"optim": {"learning_rate": 3.0}}, {("loss", None)}),
    "still": ({"build": standard, "optim": {"router_multiplier": 0.0}}, {("learning", side) for side in SIDES}),
    "balance": ({"balance": {"weight": 10.0}}, {("balance", None)}),
    "by_step": (
        {"attention": {"preference": 90.0}, "ffn": {"preference": 90.0}},
        {("token", side) for side in (*SIDES, None)},
    ),
    "trap": (
        {"top_k": 1, "router": {"weights": "renormalised"}, "balance": {"weight": 0.0}},
        {("learning", side) for side in SIDES},
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_run_gives_the_sign_of_its_failure(way, tmp_path, monkeypatch):
    fields, want = WAYS[way]
    found = signs(tmp_path, monkeypatch, **fields)
    assert found >= want
    if way == "healthy":
        assert not found
