"""Saves that fail: training goes on, tries again, and in the end stops with everything before it intact."""

import dataclasses
import errno
import os
import shutil
import sys

import jax
import numpy as np
import optax
import pytest
import tiny
from programs import call

from mom_jax.fields import ConfigError
from mom_jax.sharding import make_mesh
from train import cli, main
from train.checkpoints import manager, manifest, steps
from train.checkpoints.locate import FOLDER
from train.reporting.metrics import MetricsLog, read
from train.reporting.patient import PatientFile
from train.steps.state import init_state
from train.training import loop
from train.training.keeping import saving
from train.training.keeping.damage import changed_log
from train.training.keeping.space import check_space
from train.training.run import FolderLostError, claimed

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Disk:
    """Makes the functions that write fail while it is full."""

    def __init__(self, patch):
        self.full, self.failed = False, 0
        for owner, name in ((manager.ocp.CheckpointManager, "save"), (manifest, "write_whole")):
            patch.setattr(owner, name, self._failing(getattr(owner, name)))

    def _failing(self, write):
        def called(*args, **kwargs):
            if self.full:
                self.failed += 1
                raise FULL
            return write(*args, **kwargs)

        return called


class Run:
    """A saver with a clock of its own, and small states to save."""

    def __init__(self, folder, config, pauses=(1.0, 5.0)):
        self.said, self.now, self.config = [], 0.0, config
        self.checkpoints = manager.Checkpoints(folder / "mom")
        self.log = MetricsLog(folder)
        self.saver = saving.Saver(self.checkpoints, self.log, self.said.append, pauses, clock=lambda: self.now)
        self.state = init_state({"x": np.arange(99, dtype=np.float32)}, optax.adam(0.1))

    def at(self, step):
        return jax.device_put(dataclasses.replace(self.state, step=np.int32(step)), jax.devices()[0])

    def save(self, step, loss=None):
        self.saver.save(self.at(step), manager.Meta(self.config, "mom", step, 4 * step, "0"), loss)


@pytest.fixture
def config(tmp_path):
    return tiny.config(tmp_path)


@pytest.fixture
def disk(monkeypatch):
    return Disk(monkeypatch)


@pytest.fixture
def run(tmp_path, config, disk, monkeypatch):
    run = Run(tmp_path / "run", config)
    monkeypatch.setattr(saving.time, "sleep", lambda seconds: setattr(run, "now", run.now + seconds))
    yield run
    run.checkpoints.close()
    run.log.close()


def test_a_save_that_fails_is_tried_again_at_a_later_step(run, disk):
    run.save(1)
    run.checkpoints.wait()
    disk.full = True
    run.save(2)
    assert not run.saver.due()
    assert "could not be saved (No space left on device); training goes on, and tries again in 1 s" in run.said[0]
    run.save(3)  # too early
    assert disk.failed == 1
    run.now = 1.5
    assert run.saver.due()
    disk.full = False
    run.save(4)
    run.saver.settle(run.at(4), stopping=False)
    assert run.said[1:] == ["step 4 of mom is saved now"]
    assert steps.steps(run.checkpoints.folder) == [4]
    assert steps.problem(run.checkpoints.folder, 4) is None
    assert run.checkpoints.meta(4).examples_seen == 16


def test_what_fails_in_the_background_is_found_at_the_next_steps(run, disk, monkeypatch):
    def fails(folder):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(manifest, "seal", fails)
        run.save(1)
        run.checkpoints._completing.join()
        assert not run.saver.due()
        assert "step 1 of mom could not be saved (Input/output error)" in run.said[0]
    run.saver.settle(run.at(1), stopping=True)  # its arrays are there; now its checksums are too
    assert steps.problem(run.checkpoints.folder, 1) is None
    assert manifest.sealed(run.checkpoints.folder / "1")


def test_checksums_that_a_checkpoint_lacks_and_does_not_get_are_a_save_that_fails(run, monkeypatch, tmp_path, config):
    """A run that was killed just before, and goes on where the disk is full."""
    run.save(1)
    run.checkpoints.wait()
    (run.checkpoints.folder / "1" / manifest.MANIFEST).unlink()
    again = Run(run.checkpoints.folder.parent, config)
    with monkeypatch.context() as patch:
        patch.setattr(manifest, "write_whole", lambda *_, **__: (_ for _ in ()).throw(FULL))
        again.checkpoints.seal(1)
        again.checkpoints._completing.join()
        assert not again.saver.due()
        assert "checksums could not be saved (No space left on device); training goes on" in again.said[0]
    again.now = 1.5
    assert again.saver.due()
    again.save(2)
    again.saver.settle(again.at(2), stopping=False)
    assert steps.ordered(again.checkpoints.folder)[0] == 2
    again.checkpoints.close()
    again.log.close()


def test_the_last_try_ends_the_run_and_leaves_what_was_saved(run, disk):
    run.save(1)
    run.checkpoints.wait()
    disk.full = True
    run.save(2)
    with pytest.raises(saving.SavingFailedError, match=r"step 2 of mom .*No space left.* last of 3 tries; everything"):
        run.saver.settle(run.at(2), stopping=False)
    assert run.now == 6.0
    assert steps.ordered(run.checkpoints.folder) == [1]
    assert steps.problem(run.checkpoints.folder, 1) is None


def test_a_log_that_cannot_be_written_keeps_the_checkpoint_back(run, disk, tmp_path, monkeypatch):
    run.log.write({"kind": "train", "phase": "mom", "step": 1})
    run.log.flush()
    real, room = PatientFile._push, [0]

    def push(self):
        if room[0] is not None:  # some bytes still go to the disk
            head, tail = self._pending[: room[0]], self._pending[room[0] :]
            room[0] = 0
            self._pending = head
            real(self)
            self._pending = tail + self._pending
            raise FULL
        real(self)

    monkeypatch.setattr(PatientFile, "_push", push)
    room[0] = 10
    for step in (2, 3):
        run.log.write({"kind": "train", "phase": "mom", "step": step})
    run.save(3)
    assert "No space left" in run.said[0]
    assert steps.steps(run.checkpoints.folder) == []
    assert len(read(tmp_path / "run" / "metrics.jsonl")) == 1
    room[0] = None
    run.saver.settle(run.at(3), stopping=False)
    assert steps.steps(run.checkpoints.folder) == [3]
    assert [record["step"] for record in read(tmp_path / "run" / "metrics.jsonl")] == [1, 2, 3]
    with pytest.raises(saving.SavingFailedError, match="No space left"):
        run.saver.insist(lambda: (_ for _ in ()).throw(FULL))


def test_room_is_looked_for_before_the_first_step(config, tmp_path, monkeypatch):
    config = config.with_vocabulary(300)
    usage, said = shutil.disk_usage(tmp_path), []
    free = lambda count: monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=count))  # noqa: E731
    free(10**9)
    check_space(config, make_mesh(), said.append)
    assert not said
    free(10_000)
    with pytest.raises(ConfigError, match=r"its checkpoints need at least [\d.]+ KB of disk space, 10\.0 KB are"):
        check_space(config, make_mesh(), said.append)
    # With checkpoints of that size there already only the next one is still to come.
    folder = tmp_path / "run" / FOLDER / "mom"
    (folder / "3").mkdir(parents=True)
    (folder / "3" / "arrays").write_bytes(bytes(10**6))
    free(250_000)
    check_space(config, make_mesh(), said.append)
    free(10_000)
    with pytest.raises(ConfigError, match="disk space"):
        check_space(config, make_mesh(), said.append)
    (folder / "6").mkdir()  # the run is done
    check_space(config, make_mesh(), said.append)


def test_a_folder_that_is_moved_or_replaced_is_not_written_into(tmp_path):
    config = tiny.config(tmp_path)
    run = tmp_path / "run"
    with claimed(config) as claim:
        claim.check()
        run.rename(tmp_path / "moved")
        with pytest.raises(FolderLostError, match="has been moved or removed"):
            claim.check()
        run.mkdir()
        with pytest.raises(FolderLostError):
            claim.check()
        run.rmdir()
        (tmp_path / "moved").rename(run)
        claim.check()


def test_the_program_ends_with_75(tmp_path, monkeypatch, capsys):
    def train(*args, **kwargs):
        raise saving.SavingFailedError("step 3 of mom could not be saved")

    monkeypatch.setattr(loop, "train", train)
    code, _, err = call(capsys, main.main, "--config", tiny.write_config(tmp_path))
    assert code == 75
    assert err == "error: step 3 of mom could not be saved\n"


def test_a_checkpoint_knows_the_log_it_was_saved_with(run, tmp_path):
    for step in (1, 2):
        run.log.write({"kind": "train", "phase": "mom", "step": step, "loss": 2.0})
        run.save(step)
        run.checkpoints.wait()
    run.log.write({"kind": "train", "phase": "mom", "step": 3, "loss": 2.0})
    run.log.flush()
    file, meta = tmp_path / "run" / "metrics.jsonl", run.checkpoints.meta(2)
    lines = file.read_bytes().splitlines(keepends=True)
    assert meta.log.size == len(lines[0] + lines[1])
    assert changed_log(tmp_path / "run", meta) == []
    for place, changed in ((20, True), (meta.log.size + 20, False)):  # before it was saved, and after
        content = bytearray(b"".join(lines))
        content[place] ^= 1
        file.write_bytes(content)
        assert bool(changed_log(tmp_path / "run", meta)) == changed
    file.write_bytes(lines[0])
    assert "has changed since step 2 of mom was saved" in changed_log(tmp_path / "run", meta)[0]
    file.write_bytes(b"".join(lines))
    run.log.truncate(["mom"], "mom", 2)
    assert run.log.mark() == meta.log


def test_of_several_processes_the_one_that_cannot_save_ends_at_its_next_step(run, monkeypatch):
    """The others do not know of it: it must not wait for them, as a process does that ends."""
    monkeypatch.setattr(saving.jax, "process_count", lambda: 2)
    saver = saving.Saver(run.checkpoints, run.log, run.said.append)
    with monkeypatch.context() as patch:
        patch.setattr(manifest, "seal", lambda folder: (_ for _ in ()).throw(FULL))
        saver.checkpoints._beside(lambda: manifest.seal(run.checkpoints.folder))
        saver.checkpoints._completing.join()
    with pytest.raises(saving.SavingFailedError, match="could not be saved") as raised:
        saver.due()
    ended = []
    monkeypatch.setattr(cli.os, "_exit", lambda code: ended.append(code) or sys.exit(code))
    monkeypatch.setattr(cli, "prepare_process", lambda: None)
    for others, way in ((2, [75]), (1, [])):
        monkeypatch.setattr(saving.jax, "process_count", lambda others=others: others)
        ended.clear()
        with pytest.raises(SystemExit) as left:
            cli.run_program(lambda: (_ for _ in ()).throw(raised.value))
        assert (left.value.code, ended) == (75, way)


def test_a_process_with_an_error_does_not_wait_for_the_others(monkeypatch):
    """Orbax would: for each other process's barrier 20 minutes."""
    waited = []
    monkeypatch.setattr(manager.ocp.multihost, "get_barrier_sync_fn", lambda: lambda **given: waited.append(given))
    barrier = manager._barrier()
    barrier(key="a", timeout_ms=5)

    def fails():
        try:
            raise FULL
        finally:
            barrier(key="b", timeout_ms=5)

    with pytest.raises(OSError, match="No space"):
        fails()
    assert waited == [{"key": "a", "timeout_ms": 5}]
