"""Disks that are full, or that take nothing any more: a small file system in memory, where that can be had."""

import contextlib
import errno
import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

from campaign.judging import goes_on, refuses
from campaign.outcomes import Job, Outcome
from campaign.workshop import Place, call
from train import convert, prepare, report
from train.checkpoints import manager
from train.reporting.patient import PatientFile
from train.training.keeping import saving

GROUP = "Disks"
ROOM = 50 * 2**20


@contextlib.contextmanager
def small_disk(place: Place) -> Iterator[Path]:
    """A file system of its own, if this user may have one."""
    folder = place.folder / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs", folder], check=True, capture_output=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def resize(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True, capture_output=True)


def can_mount() -> bool:
    return os.geteuid() == 0 and shutil.which("mount") is not None and Path("/proc/mounts").exists()


@contextlib.contextmanager
def patience(*pauses: float) -> Iterator[None]:
    """Tries that follow each other quickly."""
    with (
        mock.patch.object(saving.Saver.__init__, "__defaults__", (pauses, saving.time.monotonic)),
        mock.patch.object(saving, "LAST_PAUSES", pauses[:2]),
    ):
        yield


def _full(kilobytes: int) -> Callable[[Place], list[Outcome]]:
    """The run's disk has so much room at the start; with room the same command goes on."""

    def do(place: Place) -> list[Outcome]:
        outcome = Outcome("the run's disk is full", f"{kilobytes} KB of room")
        with small_disk(place) as disk, patience(0.0, 0.0, 0.0):
            resize(disk, f"size={kilobytes}k")
            place.run = disk / "run"
            goes_on(place, outcome, exits=(2, 75), repair=lambda: resize(disk, f"size={ROOM}"), done=0)
        outcome.happened = "stopped, exit code 2 or 75; with room the same end"
        return [outcome]

    return do


def _fills(kilobytes: int) -> Callable[[Place], list[Outcome]]:
    """It fills while the run goes on; the free space was not what it looked like."""

    def do(place: Place) -> list[Outcome]:
        outcome = Outcome("the run's disk fills while it trains", f"{kilobytes} KB more than there is")
        with small_disk(place) as disk, patience(0.0, 0.0, 0.0):
            place.run = disk / "run"
            real = shutil.disk_usage
            usage = mock.patch.object(shutil, "disk_usage", lambda path: real(path)._replace(free=ROOM))
            resize(disk, f"size={kilobytes}k")
            with usage:
                goes_on(place, outcome, exits=(75,), repair=lambda: resize(disk, f"size={ROOM}"), done=0)
        outcome.happened = "stopped, exit code 75; with room the same end"
        return [outcome]

    return do


def _read_only(place: Place) -> list[Outcome]:
    outcome = Outcome("the run's disk can only be read", "remounted")
    with small_disk(place) as disk:
        shutil.copytree(place.half(), disk / "run", dirs_exist_ok=True)
        place.run = disk / "run"
        resize(disk, "ro")
        goes_on(place, outcome, exits=(2,), says="Read-only", repair=lambda: resize(disk, "rw"))
    return [outcome]


def _outputs(what: str, options: str) -> Callable[[Place], list[Outcome]]:
    """Programs with an output leave nothing of it."""

    def do(place: Place) -> list[Outcome]:
        found = []
        with small_disk(place) as disk:
            shutil.copy(place.shop.reference / "metrics.jsonl", disk)
            shutil.copy(place.shop.reference / "config.json", disk)
            resize(disk, options)
            before = sorted(disk.rglob("*"))
            source = place.shop.reference / "checkpoints" / "pretrain"
            new = ("--input", source, "--output")
            for name, program, arguments in (
                ("convert to a single file", convert.main, (*new, disk / "new.safetensors", "--to", "safetensors")),
                ("convert to a folder", convert.main, (*new, disk / "new", "--to", "huggingface")),
                ("convert to a run", convert.main, (*new, disk / "new", "--to", "vanilla")),
                ("report", report.main, (disk,)),
                ("prepare", prepare.main, ("--config", place.shop.experiment, "--cache", disk / "cache")),
            ):
                outcome = refuses(Outcome(f"{what}, other programs", name), call(program, *arguments))
                left = sorted(set(disk.rglob("*")) - set(before))
                kept = name == "prepare"  # what is finished of a cache stays
                outcome.expect(kept or not left, f"left {left}")
                shutil.rmtree(disk / "cache", ignore_errors=True)
                found.append(outcome)
        return found

    return do


def _limit(kilobytes: int) -> Callable[[Place], list[Outcome]]:
    """A limit on the size of files, as some systems give users."""

    def do(place: Place) -> list[Outcome]:
        place.half()
        outcome = Outcome("a limit on the size of files", f"{kilobytes} KB")
        old = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (kilobytes * 1024, old[1]))

        def repair() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, old)

        try:
            with patience(0.0, 0.0, 0.0):
                goes_on(place, outcome, exits=(2, 75), repair=repair)
        finally:
            repair()
        return [outcome]

    return do


def _at_times(number: int) -> Callable[[Place], list[Outcome]]:
    """Saves fail now and then: training goes on, and ends as if nothing had happened."""

    def do(place: Place) -> list[Outcome]:
        kind = {errno.ENOSPC: "is full", errno.EIO: "has errors", errno.EDQUOT: "has a quota", errno.EACCES: "refuses"}
        outcome = Outcome(f"the disk {kind[number]} for a time: saves", os.strerror(number))
        save, tries = manager.ocp.CheckpointManager.save, [0]

        def at_times(self: object, step: int, **options: object) -> object:
            tries[0] += 1
            if tries[0] in (2, 3, 6):
                raise OSError(number, os.strerror(number))
            return save(self, step, **options)

        with mock.patch.object(manager.ocp.CheckpointManager, "save", at_times), patience(0.0, 0.0, 0.0):
            goes_on(place, outcome, says="could not be saved", done=0)
        return [outcome]

    return do


def _log_at_times(place: Place) -> list[Outcome]:
    outcome = Outcome("the disk is full for a time: the log", os.strerror(errno.ENOSPC))
    push, calls = PatientFile._push, [0]

    def at_times(self: PatientFile) -> None:
        calls[0] += 1
        if calls[0] % 5 in (1, 2):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        push(self)

    with mock.patch.object(PatientFile, "_push", at_times), patience(*[0.0] * 8):
        goes_on(place, outcome, done=0)
    return [outcome]


def jobs() -> list[Job]:
    mounted = [
        *(Job(GROUP, f"full at {size} KB", _full(size)) for size in (4, 16, 300)),
        *(Job(GROUP, f"fills at {size} KB", _fills(size)) for size in (64, 300, 700)),
        Job(GROUP, "read-only", _read_only),
        Job(GROUP, "outputs, full", _outputs("a full disk", "size=24k")),
        Job(GROUP, "outputs, read-only", _outputs("a disk that can only be read", f"size={ROOM},ro")),
    ]
    return [
        *(mounted if can_mount() else []),
        *(Job(GROUP, f"files of at most {size} KB", _limit(size)) for size in (0, 4, 40)),
        *(Job(GROUP, f"saves fail: {number}", _at_times(number)) for number in (errno.ENOSPC, errno.EIO, errno.EDQUOT)),
        Job(GROUP, "log fails", _log_at_times),
    ]
