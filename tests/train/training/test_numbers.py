"""Numbers that are none: no update of them reaches a state, and what a run does instead."""

import dataclasses
import json
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from programs import call

from mom_jax.fields import ConfigError, from_dict
from mom_jax.sharding import make_mesh
from train import main
from train.checkpoints import locate
from train.config import CheckpointConfig, OptimConfig, Phase
from train.data.pipeline import TrainingData
from train.data.prepared import prepare
from train.numbers import NumbersError, Remembered, WatchConfig
from train.reporting import metrics
from train.steps import train_step as steps
from train.steps.numbers import guard as guards
from train.training import loop
from train.training.numbers.watcher import Watcher

pytestmark = pytest.mark.usefixtures("shared_steps")

STEPS, NAN, SPIKE = 8, (5,), (7,)  # batches of the data, counted from 1
SKIP = {"non_finite": "skip", "spike": "skip", "window": 3, "loss_factor": 5.0}


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    """A phase whose 5th batch has a loss that is NaN, its 7th one that is a hundred times as high."""
    folder = tmp_path_factory.mktemp("numbers")
    phases = (Phase("pretrain", STEPS, model="vanilla", optim=OptimConfig(warmup_steps=4)),)
    config = tiny.config(folder, phases=phases, checkpoint=CheckpointConfig(every=2, keep=2), evaluate_every=STEPS)
    batches = TrainingData(prepare(config.data), config.data).batches(examples_seen=0)
    marks = [int(next(batches)["tokens"].sum()) for _ in range(STEPS + 4)]
    batches.close()
    assert len(set(marks)) == len(marks)
    original = steps.batch_sums

    def poisoned(params, batch, *args, **kwargs):
        sums, mark = original(params, batch, *args, **kwargs), batch["tokens"].sum()
        is_nan, is_spike = (jnp.isin(mark, jnp.array([marks[n - 1] for n in which])) for which in (NAN, SPIKE))
        return dataclasses.replace(sums, nll=sums.nll * jnp.where(is_nan, jnp.nan, jnp.where(is_spike, 100.0, 1.0)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "batch_sums", poisoned)
        yield config


def run(config, folder, **watch):
    """(the configuration, what training returned or raised)."""
    config = dataclasses.replace(config, run=str(folder), watch=WatchConfig(**watch))
    try:
        return config, loop.train(config)
    except NumbersError as error:
        return config, error


def records(folder, kind):
    return [r for r in metrics.read(folder / "metrics.jsonl") if r["kind"] == kind]


def stored(folder, step, config):
    """The arrays of a checkpoint by name, the optimizer's among them."""
    found = locate.Found(folder, folder / "checkpoints" / "pretrain", step)
    return found.params(config.model_of("pretrain"))


def killed_at(monkeypatch, *at):
    """As if the machine stopped when these steps are started, one after the other."""
    original, left = loop.PhaseLoop.train, list(at)

    def train(self, state, examples_seen):
        function, step = self.step_function, int(state.step)

        def counted(*args):
            nonlocal step
            step += 1
            if left and step == left[0]:
                left.pop(0)
                self.saver.checkpoints.wait()
                raise KeyboardInterrupt
            return function(*args)

        self.step_function = counted
        return original(self, state, examples_seen)

    monkeypatch.setattr(loop.PhaseLoop, "train", train)


def ends_alike_when_killed(experiment, tmp_path, monkeypatch, *at, **watch):
    """Killed at these steps, one after the other, and then to its end: as the run in `whole`."""
    with monkeypatch.context() as patch:
        killed_at(patch, *at)
        for _ in at:
            with pytest.raises(KeyboardInterrupt):
                run(experiment, tmp_path / "killed", **watch)
    config, ended = run(experiment, tmp_path / "killed", **watch)
    assert ended is None
    assert comparable(tmp_path / "killed") == comparable(tmp_path / "whole")
    chex.assert_trees_all_equal(*(stored(tmp_path / name, STEPS, config) for name in ("killed", "whole")))


def comparable(folder):
    return tiny.without_times(metrics.read(folder / "metrics.jsonl"))


@pytest.mark.slow
def test_skipping_leaves_the_state_alone_and_goes_on_alike_after_a_kill(experiment, tmp_path, monkeypatch, capsys):
    seen = {}
    with monkeypatch.context() as patch:
        original = loop.PhaseLoop.train

        def train(self, state, examples_seen):
            function = self.step_function

            def kept(state, *args):
                seen[len(seen) + 1] = jax.device_get(state)  # before the step, which takes its place
                return function(state, *args)

            self.step_function = kept
            return original(self, state, examples_seen)

        patch.setattr(loop.PhaseLoop, "train", train)
        _, ended = run(experiment, tmp_path / "whole", **SKIP)
    assert ended is None
    for step in range(1, STEPS):
        before, after = seen[step], seen[step + 1]
        assert int(after.step) == step
        same = jax.tree.map(np.array_equal, (before.params, before.opt_state), (after.params, after.opt_state))
        assert all(jax.tree.leaves(same)) == (step in NAN + SPIKE)
    chex.assert_tree_all_finite(seen[STEPS].opt_state)
    train, watched = records(tmp_path / "whole", "train"), records(tmp_path / "whole", "watch")
    assert [(r["step"], r["fault"], r["skipped"]) for r in watched] == [(5, "not finite", 1), (7, "spike", 2)]
    assert train[4]["loss"] is None
    assert train[4]["loss_reason"] == "nan"
    # The schedule goes by the updates that were made.
    peak = experiment.phases[0].optim.learning_rate
    assert [r["learning_rate"] / peak for r in train[:6]] == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1], rel=0.2)
    assert train[5]["learning_rate"] == train[4]["learning_rate"]
    err = capsys.readouterr().err
    assert "step 5: the loss is nan; the gradient's norm is nan; the update is skipped" in err
    assert "skipped 2" in err
    ends_alike_when_killed(experiment, tmp_path, monkeypatch, 6, 8, **SKIP)


def test_stopping_keeps_the_state_before_and_the_batch(experiment, tmp_path, capsys):
    folder = tmp_path / "run"
    config, error = run(experiment, folder)
    assert str(error).startswith("pretrain step 5: the loss is nan; the gradient's norm is nan; the state before it is")
    first = stored(folder, 4, config)
    facts = json.loads((folder / "numbers" / "pretrain-5.json").read_text())
    assert (facts["step"], facts["examples_seen"], facts["loss"], facts["seed"]) == (5, 16, None, 0)
    data = TrainingData(prepare(config.data), config.data)
    batches = data.batches(examples_seen=facts["examples_seen"])
    with np.load(folder / "numbers" / "pretrain-5.npz") as kept:
        np.testing.assert_array_equal(kept["tokens"], next(batches)["tokens"])
    batches.close()
    capsys.readouterr()
    _, again = run(experiment, folder)
    assert str(again) == str(error)
    assert "stopped before at step 5: the loss is nan" in capsys.readouterr().err
    chex.assert_trees_all_equal(stored(folder, 4, config), first)
    [record] = records(folder, "watch")
    assert (record["step"], record["policy"], record["loss_reason"]) == (5, "stop", "nan")
    # Another policy may take the same run on. The medians begin with it: at step 7 there are none yet.
    assert run(experiment, folder, **SKIP)[1] is None
    assert [(r["step"], r["policy"]) for r in records(folder, "watch")] == [(5, "skip")]


@pytest.mark.slow
def test_rewinding_leaves_examples_out_and_goes_on_alike_after_a_kill(experiment, tmp_path, monkeypatch, capsys):
    watch = {"non_finite": "rewind", "rewind_steps": 2}
    _, ended = run(experiment, tmp_path / "whole", **watch)
    assert ended is None
    train, [record] = records(tmp_path / "whole", "train"), records(tmp_path / "whole", "watch")
    assert (record["step"], record["at"], record["rewinds"]) == (2, 5, 1)
    assert [r["step"] for r in train] == list(range(1, STEPS + 1))
    assert [r["examples_seen"] for r in train] == [4, 8, *range(24, 48, 4)]
    assert "back to step 2, without the examples from 8 to 20" in capsys.readouterr().err
    # Before it went back, after it, and after the next checkpoint.
    ends_alike_when_killed(experiment, tmp_path, monkeypatch, 3, 3, 8, **watch)


@pytest.mark.slow
def test_a_program_that_explodes_ends_with_code_3(tmp_path, capsys):
    """Without anything injected: a rate at which nothing can be learned."""
    file = tiny.write_config(tmp_path)
    flags = ("--phases.0.optim.learning-rate", "1e30", "--phases.0.optim.clip-norm", "1e30")
    code, _, err = call(capsys, main.main, "--config", file, *flags)
    assert code == 3
    assert err.splitlines()[-1].startswith("error: pretrain step ")
    assert not (tmp_path / "run" / "checkpoints" / "mom").exists()
    found = locate.find(tmp_path / "run", field="run")
    chex.assert_tree_all_finite(found.params(found.meta().model))


LOSSES = {"total": 2.0, "loss": 2.0, "balance": 0.0, "z": 0.0, "capacity": 0.0}


def report(verdict, loss, norm):
    losses = steps.Losses(**{k: np.float32(v) for k, v in (LOSSES | {"loss": loss, "total": loss}).items()})
    return steps.StepReport(losses, np.float32(norm), 1, None, {}, {}, {}, verdict)


def play(watcher, watch, numbers, first=1):
    """Judges steps of these (loss, norm), each dispatched before the one before it is seen; the outcomes."""
    judge = jax.jit(lambda g, losses, norm, step: guards.judge(g, watch, losses, norm, {"x": jnp.ones(2)}, step))
    outcomes, before, troubles = [], None, []
    for step, (loss, norm) in enumerate(numbers, start=first):
        given = report(None, loss, norm)
        verdict = judge(watcher.guard(step), given.losses, given.grad_norm, step - 1)[0]
        watcher.dispatched(verdict)
        outcomes.append(int(verdict.outcome))
        if outcomes[-1] == guards.HELD:
            break
        if before is not None:
            troubles.append(watcher.see(*before))
        before = step, dataclasses.replace(given, verdict=jax.device_get(verdict))
    troubles.append(watcher.see(*before))
    return outcomes, [trouble for trouble in troubles if trouble is not None]


def test_spikes_are_seen_by_the_median_of_the_steps_up_to_the_one_before_the_last():
    watch = WatchConfig(non_finite="skip", spike="log", window=3, loss_factor=2.0, gradient_factor=4.0)
    # The window is full after step 3, and counts from step 5 on. A step that is refused is no part of it.
    numbers = [(2, 1), (2, 1), (3, 1), (9, 1), (4.1, 1), (4.1, 1), (math.nan, 1), (6.1, 4.1), (8.3, 1)]
    whole = Watcher(watch, make_mesh())
    outcomes, troubles = play(whole, watch, numbers)
    assert outcomes == [0, 0, 0, 0, guards.SPIKE, 0, guards.NOT_FINITE, guards.SPIKE, guards.SPIKE]
    assert [trouble.policy for trouble in troubles] == ["log", "skip", "log", "log"]
    assert troubles[0].reason == "the loss is 4.1, 2.05 times the median of 2"
    assert troubles[2].reason == "the gradient's norm is 4.1, 4.1 times the median of 1"
    # What is remembered after any step is all that there is to it.
    for cut in (2, 4, 7):
        part = Watcher(watch, make_mesh())
        begun, _ = play(part, watch, numbers[:cut])
        text = json.dumps(dataclasses.asdict(part.remembered(cut)), allow_nan=False)
        known = from_dict(Remembered, json.loads(text))
        rest, _ = play(Watcher(watch, make_mesh(), cut, known), watch, numbers[cut:], first=cut + 1)
        assert begun + rest == outcomes


def test_patience_ends_and_what_is_refused_holds_the_steps_behind_it():
    nan = (math.nan, 1.0)
    watch = WatchConfig(non_finite="skip", patience=2)
    outcomes, troubles = play(Watcher(watch, make_mesh()), watch, [nan, nan, (2, 1), nan, nan, nan, (2, 1)])
    assert outcomes == [1, 1, 0, 1, 1, 1, guards.HELD]
    assert [trouble.policy for trouble in troubles] == ["skip", "skip", "skip", "skip", "stop"]
    # Behind a place from which training went back, the steps up to it end no row.
    known = Remembered(in_a_row=1, rewound_from=4, rewinds=1)
    watcher = Watcher(watch, make_mesh(), 2, known)
    play(watcher, watch, [(2, 1), (2, 1)], first=3)
    assert watcher.known.in_a_row == 1
    play(watcher, watch, [(2, 1)], first=5)
    assert watcher.known == Remembered(in_a_row=0, rewound_from=4, rewinds=1)


def test_parameters_and_infinite_gradients_are_watched_too():
    watch, losses = WatchConfig(), report(None, 2.0, 1.0).losses
    given = Watcher(watch, make_mesh()).guard(1)
    for params, norm, outcome in (
        ({"x": jnp.array([1.0, jnp.inf])}, 1.0, guards.NOT_FINITE),
        ({"x": jnp.ones(2)}, jnp.inf, guards.NOT_FINITE),
        ({"x": jnp.ones(2)}, 1e30, guards.APPLIED),
    ):
        verdict, take, counts = guards.judge(given, watch, losses, jnp.float32(norm), params, jnp.int32(0))
        assert (int(verdict.outcome), bool(take), bool(counts)) == (outcome, not outcome, not outcome)


@pytest.mark.parametrize(
    ("field", "value"), [("loss_factor", math.nan), ("gradient_factor", 1.0), ("window", 1), ("patience", 0)]
)
def test_settings_that_cannot_be(field, value):
    with pytest.raises(ConfigError, match=f"^{field}="):
        WatchConfig(**{field: value})


@pytest.mark.slow
@pytest.mark.parametrize("debug_checks", [False, True])
def test_the_same_seed_gives_the_same_bits(tmp_path, debug_checks):
    """Compiled twice, in processes' stead: nothing of the first program is left for the second run."""
    phase = Phase("mom", 4, optim=OptimConfig(warmup_steps=2))
    config, runs = tiny.config(tmp_path, phases=(phase,)), []
    for name in ("a", "b"):
        jax.clear_caches()
        for cached in (loop.jit_train_step, loop.make_optimizer):
            cached.cache_clear()
        assert loop.train(dataclasses.replace(config, run=str(tmp_path / name)), debug_checks=debug_checks) is None
        found = locate.find(tmp_path / name, field="run")
        runs.append((found.params(found.meta().model), comparable(tmp_path / name)))
    chex.assert_trees_all_equal(runs[0][0], runs[1][0])
    assert runs[0][1] == runs[1][1]
