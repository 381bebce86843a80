"""Both phases through the loop: what a run leaves, where it starts from, how often it compiles."""

import dataclasses
import itertools
import json
import math
import shutil

import jax
import numpy as np
import optax
import pytest
import tiny
from programs import call

from mom_jax.analysis import explorer
from mom_jax.analysis.signs import SignsConfig
from mom_jax.fields import ConfigError
from mom_jax.sharding import make_mesh
from train.analysis import watch
from train.checkpoints import locate, manager, run_config
from train.config import AnalysisConfig, OptimConfig, Phase
from train.data.prepared import prepare
from train.report import main as report
from train.reporting import metrics
from train.steps.optimizer import make_optimizer
from train.steps.state import init_state
from train.training import ending, initial_state, loop

pytestmark = pytest.mark.usefixtures("shared_steps")


def final_params(run, phase):
    found = locate.find(run / locate.FOLDER / phase, field="run")
    return found.params(found.meta().model)


def without_times(run):
    return tiny.without_times(metrics.read(run / "metrics.jsonl"))


def assert_same(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


def recording(steps):
    """`jit_train_step`, which also appends what it makes to `steps`."""
    original = loop.jit_train_step

    def recorded(*args, **kwargs):
        steps.append(original(*args, **kwargs))
        return steps[-1]

    return recorded


@pytest.fixture(scope="module", autouse=True)
def _quick_analyses():
    """Analyses without a measurement, which would compile as long as all the rest: tests/train/test_analyse.py."""

    def record(self, params, step):
        return {"kind": "analysis", "phase": self.phase.name, "step": step, "measured_after": step}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(watch.Watch, "record", record)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of both phases, and the compiled steps that it used."""
    folder = tmp_path_factory.mktemp("finished")
    # Judged long before there is enough evidence: such a run gives signs.
    signs = SignsConfig(warmup=1, window=3, patience=1, exchange_effect=math.inf)
    config, steps = tiny.config(folder, analysis=AnalysisConfig(every=4), signs=signs), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "jit_train_step", recording(steps))
        assert loop.train(config) is None
    return folder, config, steps


def test_a_run_leaves_everything(finished):
    folder, config, _ = finished
    run = folder / "run"
    for name in ("config.json", "metrics.jsonl", "tokenizer.model", "report.html"):
        assert (run / name).stat().st_size > 0
    assert list((run / "tensorboard").iterdir())
    # Of the routed phase alone: what tokens of a fixed text chose, in pieces that make up the text.
    [routes] = (run / "routes").iterdir()
    data = json.loads(routes.read_text())
    assert routes.name == "mom.json"
    assert explorer.is_explorer_data(data)
    assert {side: own["modules"] for side, own in data["sides"].items()} == {"attention": 2, "ffn": 3}
    text = "".join(data["vocabulary"][i] for i in data["piece"])
    assert set(text.split()) & set(tiny.WORDS)
    assert "mom-explorer" in (run / "report.html").read_text()
    assert run_config.read_config(run, "run") == config


def test_every_step_is_logged_once_and_learns(finished):
    folder, config, _ = finished
    records = metrics.read(folder / "run" / "metrics.jsonl")
    for phase in config.phases:
        mine = [r for r in records if r["phase"] == phase.name]
        train = [r for r in mine if r["kind"] == "train"]
        assert [r["step"] for r in train] == list(range(1, phase.steps + 1))
        assert train[-1]["loss"] < train[0]["loss"]
        assert [r["step"] for r in mine if r["kind"] == "validation"] == [3, 6]
        assert [r["step"] for r in mine if r["kind"] == "analysis"] == [1, 4, 6]
        assert [r["kind"] for r in mine].count("final") == 1
    seen = [r["examples_seen"] for r in records if r["kind"] == "train"]
    assert seen == [4 * (i + 1) for i in range(12)]
    routed = [r for r in records if r["kind"] == "train" and "routers" in r]
    sides = [(r, r["routers"][side]) for r in routed for side in ("attention", "ffn")]
    assert all(0 < side["grad_norm"] < r["grad_norm"] for r, side in sides)
    # Adam's changes are at most about the learning rate, which is twice as high for routers.
    assert all(0 < side["update"] / r["learning_rate"] < 4 for r, side in sides)
    final = records[-1]
    assert set(final["routers"]) == {"attention", "ffn"}
    assert len(final["exchanged"]["normal"]) == len(final["exchanged"]["exchanged"]) == 3
    assert final["sample"].startswith(final["prompt"])
    assert len(final["sample"]) > len(final["prompt"]) > 0


def test_the_router_trains_at_its_own_rate(finished):
    folder, config, _ = finished
    first = [r for r in metrics.read(folder / "run" / "metrics.jsonl") if r["kind"] == "train"][:3]
    peak = config.phases[0].optim.learning_rate
    assert [r["learning_rate"] for r in first] == pytest.approx([peak / 2, peak, peak])


def test_one_compilation_per_phase(finished):
    _, config, steps = finished
    assert [step._cache_size() for step in steps] == [1] * len(config.phases)


def test_one_compilation_after_a_restore(finished, tmp_path, monkeypatch):
    folder, config, _ = finished
    # The second phase once more, interrupted after step 3 and gone on with.
    shutil.copytree(folder / "run", tmp_path / "run")
    phase = tmp_path / "run" / locate.FOLDER / "mom"
    steps = []
    recorded = recording(steps)
    monkeypatch.setattr(loop, "jit_train_step", recorded)
    interrupted = dataclasses.replace(config, run=str(tmp_path / "run"))
    shutil.rmtree(phase)
    stop_at(monkeypatch, 3)
    assert loop.train(interrupted) is not None
    monkeypatch.undo()
    monkeypatch.setattr(loop, "jit_train_step", recorded)
    assert loop.train(interrupted) is None
    assert [step._cache_size() for step in steps] == [1, 1]
    assert_same(final_params(tmp_path / "run", "mom"), final_params(folder / "run", "mom"))


def stop_at(monkeypatch, step):
    """As if the user pressed Ctrl-C while the phase's step `step` runs."""
    original = loop.PhaseLoop.train

    def hook(self, state, examples_seen):
        function, first = self.step_function, int(state.step) + 1
        counted = itertools.count(first)

        def step_function(*args):
            if next(counted) == step:
                self.context.stop.signal = 2
            return function(*args)

        self.step_function = step_function
        return original(self, state, examples_seen)

    monkeypatch.setattr(loop.PhaseLoop, "train", hook)


@pytest.mark.parametrize("step", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_an_interrupted_run_ends_alike(finished, tmp_path, monkeypatch, step):
    folder, config, _ = finished
    again = dataclasses.replace(config, run=str(tmp_path / "run"))
    with monkeypatch.context() as patch:
        stop_at(patch, step)
        for _ in config.phases:  # interrupted once in each phase
            assert loop.train(again) == 2
    assert loop.train(again) is None
    for phase in config.phases:
        assert_same(final_params(tmp_path / "run", phase.name), final_params(folder / "run", phase.name))
    ours = metrics.read(tmp_path / "run" / "metrics.jsonl")
    theirs = metrics.read(folder / "run" / "metrics.jsonl")

    def comparable(records):
        return tiny.without_times(r for r in records if r["kind"] in ("train", "sign"))

    assert comparable(ours) == comparable(theirs)
    said = {(r["sign"], r["side"]): r["step"] for r in theirs if r["kind"] == "sign"}
    # One before both interruptions or between them, and one with the phase's last word.
    assert 3 in said.values()
    assert said["token", None] == 6
    assert len(said) == sum(r["kind"] == "sign" for r in theirs)


def test_a_signal_in_the_last_evaluation_of_a_phase(finished, tmp_path, monkeypatch):
    """It ends at once; the same command begins that evaluation anew and goes on."""
    folder, config, _ = finished
    again = dataclasses.replace(config, run=str(tmp_path / "run"))
    original = ending.exchange_test

    def interrupted(*args, **kwargs):
        monkeypatch.setattr(ending, "exchange_test", original)
        stops[-1].signal = 15
        return original(*args, **kwargs)

    stops = []
    enter = loop.processes.Stop.__enter__
    monkeypatch.setattr(loop.processes.Stop, "__enter__", lambda self: stops.append(self) or enter(self))
    monkeypatch.setattr(ending, "exchange_test", interrupted)
    assert loop.train(again) == 15
    records = metrics.read(tmp_path / "run" / "metrics.jsonl")
    assert [r["phase"] for r in records if r["kind"] == "final"] == ["pretrain"]
    assert not (tmp_path / "run" / "report.html").exists()
    assert loop.train(again) is None

    def last_words(run):
        return [r for r in without_times(run) if r["kind"] == "final"]

    assert last_words(tmp_path / "run") == last_words(folder / "run")
    assert_same(final_params(tmp_path / "run", "mom"), final_params(folder / "run", "mom"))


def test_a_finished_run_is_left_alone(finished):
    folder, config, _ = finished
    log = (folder / "run" / "metrics.jsonl").read_bytes()
    assert loop.train(config) is None
    assert (folder / "run" / "metrics.jsonl").read_bytes() == log


def test_a_last_word_that_has_changed_is_said_again(finished, tmp_path, capsys):
    """That of the last phase. A first phase is not trained again for it: the next one has begun with its end."""
    folder, config, _ = finished
    run = tmp_path / "run"
    shutil.copytree(folder / "run", run)
    before = without_times(run)
    less = [r for r in before if (r["kind"], r["phase"]) != ("final", "pretrain")]
    again = dataclasses.replace(config, run=str(run))
    for phase, expected in (("mom", before), ("pretrain", less)):
        lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
        kinds = [(r["kind"], r["phase"]) for r in map(json.loads, lines)]
        at = kinds.index(("final", phase))
        lines[at] = lines[at].replace('"loss": ', '"loss": 1')
        (run / "metrics.jsonl").write_text("".join(lines))
        told = f"line {at + 1}: the final record does not have the checksum"
        code, _, error = call(capsys, report, run, "--json")
        assert code == 0
        assert f"{told} that it was written with; it is left out" in error
        assert loop.train(again) is None
        assert f"{told} that it was written with; it is left out" in capsys.readouterr().err
        assert without_times(run) == expected
        assert call(capsys, report, run)[0] == 0
        assert_same(final_params(run, "mom"), final_params(folder / "run", "mom"))


@pytest.mark.parametrize(
    ("losses", "kept", "best"),
    [((1.0, 2.0, 3.0), [1, 3], 1), ((3.0, 2.0, 1.0), [3], 3), ((1.0, float("nan"), 2.0, None), [1, 4], 1)],
)
def test_the_best_and_the_latest_checkpoint_are_kept(finished, tmp_path, losses, kept, best):
    _, config, _ = finished
    optimizer = optax.sgd(0.1)
    state = jax.device_put(init_state({"x": np.zeros(2, np.float32)}, optimizer), jax.devices()[0])
    checkpoints = manager.Checkpoints(tmp_path)
    for step, loss in enumerate(losses, start=1):
        checkpoints.save(state, manager.Meta(config, "mom", step, 4 * step, "0"), loss)
    checkpoints.wait()
    assert sorted(int(path.name) for path in tmp_path.iterdir() if path.name.isdecimal()) == kept
    assert (checkpoints.best(), checkpoints.latest()) == (best, len(losses))
    checkpoints.close()


def initial(config, phase, folder, fingerprint=None):
    own = manager.Checkpoints(folder / locate.FOLDER / phase.name)
    optimizer = make_optimizer(phase.optim, phase.steps)
    fingerprint = fingerprint or prepare(config.data).tokenizer.fingerprint
    try:
        return initial_state.initial_state(config, phase, optimizer, own, fingerprint, make_mesh())
    finally:
        own.close()


def test_precedence_of_initialisation(finished, tmp_path):
    folder, config, _ = finished
    run = str(folder / "run")
    phase = Phase("mom", 6, init_from=run + "/checkpoints/pretrain/6", optim=config.phases[1].optim)
    new = dataclasses.replace(config, phases=(phase,), run=str(tmp_path / "run"))
    scratch = initial(new, dataclasses.replace(phase, init_from="scratch"), tmp_path / "a")
    assert int(scratch.state.step) == scratch.examples_seen == 0
    from_phase = initial(new, phase, tmp_path / "b")
    assert int(from_phase.state.step) == from_phase.examples_seen == 0
    vanilla = final_params(folder / "run", "pretrain")
    assert_same(from_phase.state.params["embed"], vanilla["embed"])
    assert_same(from_phase.state.params["chunks"][0]["ffn"], vanilla["chunks"][0]["ffn"])
    assert any("module 2/attention is dropped" in message for message in from_phase.messages)
    assert_same(from_phase.state.params["chunks"][0]["ffn_router"], scratch.state.params["chunks"][0]["ffn_router"])
    resumed = initial(dataclasses.replace(new, resume=run), phase, tmp_path / "c")
    assert int(resumed.state.step) == 6
    assert resumed.examples_seen == 48
    own = initial(dataclasses.replace(new, resume=run), phase, folder / "run")
    assert own.messages == ["resuming at step 6"]
    assert_same(own.state.params, resumed.state.params)


def test_a_checkpoint_of_another_model_or_tokenizer_is_refused(finished, tmp_path):
    folder, config, _ = finished
    phase = dataclasses.replace(config.phases[1], init_from=str(folder / "run"))  # its furthest phase: a MoM
    new = dataclasses.replace(config, phases=(phase,), run=str(tmp_path / "run"))
    with pytest.raises(ConfigError, match="another tokenizer"):
        initial(new, phase, tmp_path / "a", "0" * 64)
    wider = dataclasses.replace(new, model=dataclasses.replace(config.model, num_steps=4, num_ffn_modules=4))
    with pytest.raises(ConfigError, match="another structure"):
        initial(wider, phase, tmp_path / "b")
    pretrained = dataclasses.replace(phase, init_from=str(folder / "run/checkpoints/pretrain"))
    with pytest.raises(ConfigError, match=r"layers are missing for: .*"):
        initial(wider, pretrained, tmp_path / "c")


def test_a_changed_configuration_is_refused(finished):
    folder, config, _ = finished
    changed = dataclasses.replace(config, seed=1)
    with pytest.raises(ConfigError, match=r"run=.*another configuration \(seed: 0 -> 1\); give this one"):
        loop.train(changed)
    assert json.loads((folder / "run" / "config.json").read_text())["seed"] == 0


@pytest.mark.slow
def test_freezing_accumulation_and_half_precision_in_a_run(finished, tmp_path):
    folder, config, _ = finished
    half = dataclasses.replace(config.model, dtype="bfloat16", remat="full")
    optim = OptimConfig(freeze=("chunks/*", "embed/*"), accumulation=2, schedule="wsd", decay_steps=1)
    phase = Phase("frozen", 2, init_from=str(folder / "run"), optim=optim)
    new = dataclasses.replace(config, model=half, phases=(phase,), run=str(tmp_path / "run"))
    assert loop.train(new) is None
    before, after = final_params(folder / "run", "mom"), final_params(tmp_path / "run", "frozen")
    assert_same(before["chunks"], after["chunks"])
    assert_same(before["embed"], after["embed"])
    assert {leaf.dtype for leaf in jax.tree.leaves(after)} == {np.dtype("float32")}
    moved = np.abs(np.asarray(after["top"][0]["ffn"]["in_kernel"] - before["top"][0]["ffn"]["in_kernel"])).max()
    assert moved > 0
