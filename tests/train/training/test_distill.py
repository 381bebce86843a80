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
from orbax.checkpoint.args import StandardSave
from small import SMALL, change, quick, random_ids, random_params

import mom_jax as mom
from mom_jax import losses
from mom_jax.fields import ConfigError
from mom_jax.sharding import make_mesh
from train.checkpoints import locate
from train.checkpoints.manager import Checkpoints, Meta
from train.checkpoints.teacher import check_teacher, teacher_of
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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("over", "accumulation"),
    [("batch", 1), ("batch", 2), ("micro_batch", 2)],
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
    step = quick(functools.partial(train_step, **bound, teaching=TEACHING))
    state, report = step(init_state(params, optimizer), batch, None, teacher)
    plain = quick(jax.value_and_grad(functools.partial(oracle, config=config, teacher=teacher), has_aux=True))
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


@pytest.mark.slow
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


def test_teachers_that_cannot_be(tmp_path):
    """One line each; nothing is written. The teacher that a checkpoint names is taken, no other."""
    config = tiny.config(tmp_path)
    tiny.store(config, "pretrain")
    run, new = config.run, tmp_path / "new"

    def experiment(distill, model=config.model):
        phase = Phase("mom", 6, distill=distill)
        return dataclasses.replace(config, model=model, phases=(phase,), run=str(new))

    def refused(message, distill, model=config.model):
        with pytest.raises(ConfigError, match=message):
            loop.train(experiment(distill, model))
        assert not new.exists()

    refused(r"phases\[0\].distill='previous': has no phase before it", "previous")
    refused("phases.mom.distill='/nowhere': no such folder", "/nowhere")
    larger = dataclasses.replace(config.model, vocab_size=301)
    refused("phases.mom.distill=.*: is a model of 300 token ids; model.vocab_size is 301", run, larger)

    taught, tokenizer = experiment(run), locate.find(run, field="run").meta().tokenizer
    own = Checkpoints(new / locate.FOLDER / "mom", keep=2)
    try:
        teacher = teacher_of(taught, taught.phases[0], own, tokenizer, make_mesh())
        assert teacher.name == "pretrain/6"
        chex.assert_trees_all_equal(teacher.params, random_params(config.model.vanilla()))
        own.save_items(Meta(taught, "mom", 2, 8, tokenizer, "pretrain/5"), x=StandardSave({"x": np.zeros(2)}))
        own.wait()
        with pytest.raises(ConfigError, match=r"phases.mom.distill=.*pretrain/5, which .*, is gone"):
            teacher_of(taught, taught.phases[0], own, tokenizer, make_mesh())
    finally:
        own.close()
    with pytest.raises(ConfigError, match=r"pretrain/5, which .*, is gone"):
        check_teacher(taught, taught.phases[0], tokenizer)


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
