"""Whole runs that meet a fault: said, and in the end the same parameters and the same log as without it."""

import dataclasses
import errno
import io
import json
import os
import shutil

import inject
import jax
import numpy as np
import pytest
import tiny
from rich.console import Console

from mom_jax.fields import ConfigError
from train.checkpoints import locate, manager, steps
from train.config import CheckpointConfig
from train.training import loop
from train.training.keeping import saving
from train.training.phase import PhaseLoop
from train.training.run import FolderLostError

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("shared_steps")]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(folder, configuration, what it said) of a run whose last three checkpoints stay."""
    folder = tmp_path_factory.mktemp("finished")
    config = tiny.config(folder, checkpoint=CheckpointConfig(every=2, keep=3))
    return folder, config, train(config)


@pytest.fixture
def again(finished, tmp_path):
    """The same run in another place: (its folder, its configuration)."""
    folder, config, _ = finished
    run = folder / "run"
    aside = tmp_path / "aside"
    shutil.copytree(run, aside)
    yield run, config
    shutil.rmtree(run)
    shutil.copytree(aside, run)


def train(config):
    """What a run says."""
    text = io.StringIO()
    assert loop.train(config, console=Console(file=text, width=10_000)) is None
    return text.getvalue()


def ends(run, phase="mom"):
    """(parameters, the log without times) of a run."""
    found = locate.find(run / locate.FOLDER / phase, field="run")
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return found.arrays(found.meta().model), tiny.without_times(records)


def assert_same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one[0], other[0])
    assert one[1] == other[1]


@pytest.mark.parametrize("fault", ["truncated", "removed", "emptied"])
def test_a_damaged_checkpoint_costs_steps_and_nothing_else(again, fault):
    run, config = again
    before, phase = ends(run), run / locate.FOLDER / "mom"
    inject.FILE_FAULTS[fault](inject.largest(phase / "6", "optimizer"))
    if fault == "emptied":  # and with the others of its phase from the end of phase 1
        for step in steps.steps(phase)[:-1]:
            inject.empty(phase / str(step))
    said = train(config)
    assert "is damaged (optimizer/" in said
    assert "set aside as 6.damaged" in said
    assert ("resuming at step 4" in said) == (fault != "emptied")
    assert_same(ends(run), before)
    assert (phase / "6.damaged").is_dir()


def test_bytes_that_changed_stop_the_run_once(again):
    run, config = again
    before = ends(run)
    inject.flip(inject.largest(run / locate.FOLDER / "mom" / "6", "params"), seed=3)
    with pytest.raises(ConfigError, match="checksum"):
        train(config)
    assert "resuming at step 4" in train(config)
    assert_same(ends(run), before)


def test_what_a_log_has_lost_is_said(again):
    run, config = again
    log = run / "metrics.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[: len(lines) // 2]))
    assert "the log metrics.jsonl has lost" in train(config)
    log.unlink()
    assert "has lost 12 of 12 steps, the first is step 1 of pretrain" in train(config)
    log.write_text("{no json}\n" + "".join(lines))
    with pytest.raises(ConfigError, match=r"metrics\.jsonl, line 1"):
        train(config)


def test_a_run_without_checksums_gets_them(again):
    run, config = again
    for file in (run / locate.FOLDER).rglob("manifest.json"):
        file.unlink()
    for step in steps.steps(run / locate.FOLDER / "mom")[1:]:
        shutil.rmtree(run / locate.FOLDER / "mom" / str(step))
    train(config)
    assert all(path.joinpath("manifest.json").exists() for path in (run / locate.FOLDER / "mom").iterdir())


def test_tokens_that_changed_are_not_trained_on(again):
    run, config = again
    [file] = (run.parent / "cache").glob("data-*/train.bin")
    content = file.read_bytes()
    inject.flip(file, seed=1)
    with pytest.raises(ConfigError, match=r"train\.bin.*checksum"):
        train(config)
    file.write_bytes(content)


def test_a_disk_that_is_full_for_a_time_changes_nothing(again, monkeypatch, capsys):
    run, config = again
    before = ends(run)
    shutil.rmtree(run)
    tries, save = [], manager.ocp.CheckpointManager.save

    def full_at_times(self, step, **options):
        tries.append(step)
        if len(tries) in (2, 3, 5):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return save(self, step, **options)

    monkeypatch.setattr(manager.ocp.CheckpointManager, "save", full_at_times)
    monkeypatch.setattr(saving.Saver.__init__, "__defaults__", ((0.0,) * 5, saving.time.monotonic))
    said = train(config) + capsys.readouterr().err  # where progress is shown
    assert said.count("could not be saved (No space left on device)") == 3
    assert "step 5 of pretrain is saved now" in said
    assert_same(ends(run), before)

    shutil.rmtree(run)

    def always(self, step, **options):
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(manager.ocp.CheckpointManager, "save", always)
    with pytest.raises(saving.SavingFailedError, match="last of 6 tries"):
        train(config)
    monkeypatch.setattr(manager.ocp.CheckpointManager, "save", save)
    train(config)
    assert_same(ends(run), before)


@pytest.mark.parametrize("taken", [False, True])
def test_a_run_whose_folder_is_moved_writes_nothing_under_its_old_name(finished, tmp_path, monkeypatch, taken):
    folder, config, _ = finished
    config = dataclasses.replace(config, run=str(tmp_path / "run"))
    save = saving.Saver.save

    def moved(self, state, meta, loss):
        if (meta.phase, meta.step) == ("mom", 4):
            self.checkpoints.wait()
            (tmp_path / "run").rename(tmp_path / "moved")
            if taken:
                (tmp_path / "run").mkdir()
        save(self, state, meta, loss)

    with monkeypatch.context() as patch:
        patch.setattr(saving.Saver, "save", moved)
        with pytest.raises(FolderLostError, match="run': has been moved or removed while it was trained"):
            train(config)
    assert (tmp_path / "run").exists() == taken
    assert not taken or not any((tmp_path / "run").iterdir())
    train(dataclasses.replace(config, run=str(tmp_path / "moved")))
    assert_same(ends(tmp_path / "moved"), ends(folder / "run"))


def test_a_run_that_was_killed_at_once_needs_its_source_no_more(finished, tmp_path, monkeypatch):
    """What it began with may be another run, which is trained on, or deleted, before the same command goes on."""
    folder, config, _ = finished
    shutil.copytree(folder / "run", tmp_path / "source")
    phase = dataclasses.replace(config.phases[1], init_from=str(tmp_path / "source" / locate.FOLDER / "pretrain"))
    names = ("undisturbed", "killed")
    runs = [dataclasses.replace(config, phases=(phase,), run=str(tmp_path / name)) for name in names]
    train(runs[0])
    log = PhaseLoop._log

    def killed(self, pending, progress):
        if pending is not None and pending.step == 1:
            raise KeyboardInterrupt
        return log(self, pending, progress)

    with monkeypatch.context() as patch:
        patch.setattr(PhaseLoop, "_log", killed)
        with pytest.raises(KeyboardInterrupt):
            train(runs[1])
    shutil.rmtree(tmp_path / "source")
    assert "resuming at step 0" in train(runs[1])
    assert_same(*[ends(tmp_path / name) for name in names])
