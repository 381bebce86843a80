"""A phase with a teacher: the step against plain formulas, and runs that go on exactly."""

import dataclasses
import functools
import shutil
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from small import SMALL, change, random_ids, random_params

import mom_jax as mom
from mom_jax import losses
from mom_jax.fields import ConfigError
from mom_jax.sharding import make_mesh
from train.checkpoints import locate
from train.config import CheckpointConfig, OptimConfig, Phase
from train.reporting import metrics
from train.steps.state import init_state
from train.steps.teaching import Teaching
from train.steps.train_step import train_step
from train.training import loop

TEACHER = dataclasses.replace(SMALL.vanilla(), d_model=8, d_ff=12)
TEACHING = Teaching(TEACHER, 0.4, 2.0)


def oracle(params, batch, config, teacher):
    """(total loss, (cross entropy, divergence)) of the whole batch, from all logits."""
    ids, mask = batch["tokens"], batch["mask"]
    output = mom.with_parameters(config, params)(ids, mask=mask)
    theirs = mom.with_parameters(TEACHER, teacher)(ids, mask=mask).logits[:, :-1]
    counts, logits = mask[:, 1:] & mask[:, :-1], output.logits[:, :-1]
    nll, count = losses.cross_entropy(logits, jnp.where(counts, ids[:, 1:], losses.IGNORE))
    p, q = jax.nn.softmax(theirs / 2.0), jax.nn.softmax(logits / 2.0)
    kl = jnp.where(counts, (p * jnp.log(p / q)).sum(-1), 0).sum() / count
    routers = config.balance.weight * losses.balance_loss(output.routing, config)
    return 0.6 * nll / count + 0.4 * 4.0 * kl + routers, (nll / count, kl)


@pytest.mark.parametrize(
    ("over", "accumulation"), [("batch", 1), pytest.param("batch", 2, marks=pytest.mark.slow), ("micro_batch", 2)]
)
def test_a_step_with_a_teacher_is_the_plain_formula(over, accumulation):
    """SGD with a rate of 1 subtracts the gradient. Where micro-batches are balanced by themselves, nothing is."""
    weight = 0.0 if over == "micro_batch" else 0.5
    config = change(SMALL, balance={"over": over, "weight": weight}, num_steps=2)
    params, teacher, optimizer = random_params(config), random_params(TEACHER, 1), optax.sgd(1.0)
    mask = np.ones((4, 7), bool)
    mask[1, 4:] = False
    batch = {"tokens": random_ids(4, 7), "mask": jnp.asarray(mask)}
    bound = {"config": config, "optimizer": optimizer, "accumulation": accumulation, "seed": 0, "mesh": make_mesh()}
    step = jax.jit(functools.partial(train_step, **bound, teaching=TEACHING))
    state, report = step(init_state(params, optimizer), batch, teacher)
    plain = jax.jit(jax.value_and_grad(functools.partial(oracle, config=config, teacher=teacher), has_aux=True))
    (total, (loss, kl)), gradients = plain(params, batch)
    got = report.losses.total, report.losses.loss, report.losses.distill
    np.testing.assert_allclose(got, (total, loss, kl), rtol=2e-5)
    changes = jax.tree.map(jnp.subtract, params, state.params)
    chex.assert_trees_all_close(changes, gradients, rtol=1e-4, atol=2e-5)


@pytest.fixture(scope="module")
def taught(tmp_path_factory, shared_steps):
    """A run whose second phase is taught by the first, with all its checkpoints."""
    folder = tmp_path_factory.mktemp("taught")
    config = tiny.config(folder, checkpoint=CheckpointConfig(every=2, keep=9))
    first = dataclasses.replace(config.phases[0], steps=2)
    fields = {"distill": "previous", "distill_weight": 0.4, "distill_temperature": 2.0}
    optim = OptimConfig(optimizer="muon", freeze_until=(("chunks/0/ffn/*", 3),))
    config = dataclasses.replace(
        config, phases=(first, dataclasses.replace(config.phases[1], steps=4, optim=optim, **fields))
    )
    assert loop.train(config) is None
    return config


def state_of(run, step):
    found = locate.find(f"{run}/{locate.FOLDER}/mom/{step}", field="run")
    return found.meta(), found.params(found.meta().model)


def test_an_interrupted_phase_with_a_teacher_goes_on_exactly(taught, tmp_path):
    """Muon and modules that wait are in it as well."""
    run = tmp_path / "run"
    shutil.copytree(taught.run, run)
    for step in (3, 4):
        shutil.rmtree(run / locate.FOLDER / "mom" / str(step))
    again = dataclasses.replace(taught, run=str(run))
    assert loop.train(again) is None
    (meta, params), (_, want) = state_of(run, 4), state_of(taught.run, 4)
    assert meta.teacher == "pretrain/2"
    chex.assert_trees_all_equal(params, want)
    rows, others = (
        [row for row in metrics.read(path / "metrics.jsonl") if row["kind"] == "train" and row["phase"] == "mom"]
        for path in (run, Path(taught.run))
    )
    keys = ("step", "loss", "total", "distill", "balance")
    assert [[row[key] for key in keys] for row in rows] == [[row[key] for key in keys] for row in others]
    row = rows[-1]
    routers = taught.model.balance.weight * row["balance"]
    np.testing.assert_allclose(row["total"], 0.6 * row["loss"] + 0.4 * 4 * row["distill"] + routers, rtol=1e-5)
    assert row["distill"] > 0
    # The FFN modules waited for three steps.
    (_, start), (_, third) = state_of(run, 2), state_of(taught.run, 3)
    chex.assert_trees_all_equal(start["chunks"][0]["ffn"], third["chunks"][0]["ffn"])
    assert (third["chunks"][0]["ffn"]["in_kernel"] != params["chunks"][0]["ffn"]["in_kernel"]).any()


def test_teachers_that_cannot_be(taught, tmp_path):
    """One line each; nothing is written."""

    def refused(message, distill, model=taught.model):
        phase = dataclasses.replace(taught.phases[1], init_from="scratch", distill=distill)
        with pytest.raises(ConfigError, match=message):
            loop.train(dataclasses.replace(taught, model=model, phases=(phase,), run=str(tmp_path / "new")))
        assert not (tmp_path / "new").exists()

    refused(r"phases\[0\].distill='previous': has no phase before it", "previous")
    refused("phases.mom.distill='/nowhere': no such folder", "/nowhere")
    larger = dataclasses.replace(taught.model, vocab_size=301)
    refused("phases.mom.distill=.*: is a model of 300 token ids; model.vocab_size is 301", taught.run, larger)


def test_a_teacher_that_is_gone(taught, tmp_path):
    """Another checkpoint in its place is not taken."""
    run = tmp_path / "run"
    shutil.copytree(taught.run, run)
    for step in (3, 4):
        shutil.rmtree(run / locate.FOLDER / "mom" / str(step))
    teacher = run / locate.FOLDER / "pretrain" / "2"
    again = dataclasses.replace(taught, run=str(run))
    teacher.rename(teacher.with_name("1"))
    with pytest.raises(ConfigError, match=r"phases.mom.distill='previous': .*pretrain/2, which .*, is gone"):
        loop.train(again)
    shutil.rmtree(teacher.parent)
    with pytest.raises(ConfigError, match=r"phases.mom.distill='.*pretrain': no such folder"):
        loop.train(again)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"distill": "previous", "distill_weight": 0.0}, "distill_weight=0.0: must lie above 0"),
        ({"distill": "previous", "distill_temperature": 0.0}, "distill_temperature=0.0: must be positive"),
        ({"distill_weight": 0.3}, "distill_weight=0.3: is not used without distill"),
    ],
)
def test_fields_of_a_teacher(fields, message):
    with pytest.raises(ConfigError, match=message):
        Phase("phase", 2, **fields)
