"""`--debug-checks`: the same training, until a value is not sound; then one line says what is wrong and where."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from programs import call

from mom_jax.sharding import make_mesh
from train import main
from train.batch import Batch
from train.numbers import NumbersError
from train.steps.debug_checks import check_report
from train.steps.optimizer import make_optimizer
from train.steps.state import init_state
from train.steps.train_step import jit_train_step
from train.training import loop
from train.training.initial_state import fresh_params


class Setup:
    """A MoM's step with checks, and what it takes; called, the report of the first step after a change of its state."""

    def __init__(self, folder):
        config = tiny.config(folder)
        optimizer = make_optimizer(config.phases[1].optim, 6)
        step = jit_train_step(config.model, optimizer, 2, 0, make_mesh(), debug_checks=True)
        ids = np.random.default_rng(0).integers(0, config.model.vocab_size, (4, 16)).astype(np.int32)
        batch: Batch = {"tokens": jnp.asarray(ids)}
        self.parts = step, config, optimizer, batch
        self.params = jax.device_get(fresh_params(config.model, 0, make_mesh()))

    def state(self, change=lambda params: None):
        params = jax.tree.map(jnp.asarray, self.params)
        change(params)
        return init_state(params, self.parts[2])

    def __call__(self, change=lambda params: None):
        step, *_, batch = self.parts
        return step(self.state(change), batch)[1]


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    return Setup(tmp_path_factory.mktemp("debug"))


@pytest.mark.slow
def test_a_sound_step_passes(setup):
    report = setup()
    assert {"gradients are not finite", "faults/attention router logits are not finite"} <= set(report.faults)
    check_report(report, "phase mom, step 1")


def router_gives_nan(params):
    params["chunks"][0]["ffn_router"]["score_bias"] += jnp.nan


def embedding_is_infinite(params):
    params["embed"]["tokens"] = jnp.full_like(params["embed"]["tokens"], jnp.inf)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (router_gives_nan, "ffn router logits are not finite (768 of them; the first in chunk 0, assembly step 0)"),
        (embedding_is_infinite, "in chunk 0, assembly step 0)"),
    ],
)
def test_what_is_not_sound_is_said_in_one_line(setup, change, expected):
    with pytest.raises(NumbersError, match=r"^debug_checks: phase mom, step 1: ") as error:
        check_report(setup(change), "phase mom, step 1")
    assert expected in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_a_gradient_alone(setup):
    report = setup()
    faults = report.faults | {"gradients are not finite": jnp.int32(3)}
    with pytest.raises(NumbersError, match=r"here: gradients are not finite \(3 of them\)$"):
        check_report(dataclasses.replace(report, faults=faults), "here")
    with pytest.raises(NumbersError, match="here: the norm of the gradient is nan"):
        check_report(dataclasses.replace(report, grad_norm=jnp.float32(jnp.nan)), "here")


@pytest.mark.slow
def test_the_step_itself_is_the_same(setup):
    _, config, optimizer, batch = setup.parts
    plain = jit_train_step(config.model, optimizer, 2, 0, make_mesh())
    states = [function(setup.state(), batch)[0] for function in (setup.parts[0], plain)]
    chex.assert_trees_all_close(*states, atol=1e-6, rtol=1e-5)


def test_a_run_ends_at_a_fault(tmp_path, capsys, monkeypatch):
    original = loop.initial_state

    def poisoned(*args):
        start = original(*args)
        embed = start.state.params["embed"]
        embed["tokens"] = embed["tokens"].at[:].set(jnp.nan)
        return start

    monkeypatch.setattr(loop, "initial_state", poisoned)
    experiment = tiny.write_config(tmp_path)
    code, _, err = call(capsys, main.main, "--config", experiment, "--debug-checks")
    assert code == 3
    assert err.splitlines()[-1].startswith("error: debug_checks: phase pretrain, step 1: ")
