"""Two programs in one folder, configurations that change on top of a run, file systems without locks, odd clocks."""

import errno
import fcntl
import os
import random
import time
from collections.abc import Callable
from unittest import mock

from campaign.judging import goes_on, refuses
from campaign.nursery import Nursery
from campaign.outcomes import Job, Outcome, Said
from campaign.workshop import Place, call
from train import prepare

GROUP = "Sharing, changes and clocks"


def _two_runs(nursery: Callable[[], Nursery]) -> Callable[[Place], list[Outcome]]:
    def do(place: Place) -> list[Outcome]:
        outcome = Outcome("two runs in one folder", "the second started while the first trains")
        first = nursery().start("train.main", place.flags(), place.folder, "first")
        while first.poll() is None and not (place.run / "metrics.jsonl").exists():
            time.sleep(0.01)
        refuses(outcome, place.train(), "another process is training in this folder")
        outcome.expect(first.wait() == 0, f"the first ended with {first.code}: {first.err[-300:]!r}")
        place.compare(outcome)
        outcome.happened = "the second stopped, exit code 2; the first went on"
        return [outcome]

    return do


def _two_preparations(nursery: Callable[[], Nursery]) -> Callable[[Place], list[Outcome]]:
    def do(place: Place) -> list[Outcome]:
        outcome = Outcome("two preparations of one cache", "started together")
        place.cache = place.folder / "cache"
        flags = ("--config", place.shop.experiment, "--cache", place.cache)
        both = [nursery().start("train.prepare", flags, place.folder, f"prepare{i}") for i in range(2)]
        for child in both:
            code = child.wait()
            outcome.wrong += Said(code, "", child.err).complaints()
            outcome.expect(code == 0, f"exit code {code}: {child.err[-300:]!r}")
        for file in place.shop.cache.glob("*/*.*"):
            other = place.cache / file.relative_to(place.shop.cache)
            same = other.exists() and other.read_bytes() == file.read_bytes()
            outcome.silent |= not outcome.expect(same, f"another {other}")
        outcome.happened = "one waited for the other; one cache"
        return [outcome]

    return do


def _lock_held(place: Place) -> list[Outcome]:
    place.half()
    with (place.run / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        said = place.train()
    outcome = refuses(Outcome("a run whose lock is held", "by another program"), said, "another process is training")
    goes_on(place, outcome)
    outcome.happened = "stopped, exit code 2; then went on"
    return [outcome]


def _no_locks(number: int) -> Callable[[Place], list[Outcome]]:
    def do(place: Place) -> list[Outcome]:
        def flock(*args: object) -> None:
            raise OSError(number, os.strerror(number))

        found = []
        for name, start in (
            ("train", place.train),
            (
                "prepare",
                lambda: call(prepare.main, "--config", place.shop.experiment, "--cache", place.folder / "new"),
            ),
        ):
            with mock.patch.object(fcntl, "flock", flock):
                said = start()
            outcome = Outcome("a file system without locks", f"{name}: {errno.errorcode[number]}")
            found.append(refuses(outcome, said, "the file system has no locks"))
        return found

    return do


def _changed(*flags: object) -> Callable[[Place], list[Outcome]]:
    def do(place: Place) -> list[Outcome]:
        place.half()
        outcome = Outcome("another configuration on top of a run", " ".join(map(str, flags)))
        refuses(outcome, place.train(*flags), "another configuration")
        goes_on(place, outcome)
        outcome.happened = "stopped, exit code 2; as it was it went on"
        return [outcome]

    return do


def _clock(what: str, jump: Callable[[random.Random], float]) -> Callable[[Place], list[Outcome]]:
    """The system's clock jumps once, at one of the first looks at it; not the one that only counts."""

    def do(place: Place) -> list[Outcome]:
        place.half()
        real, real_ns, rng = time.time, time.time_ns, place.rng
        far, left = jump(rng), [rng.randrange(1, 200)]

        def off() -> float:
            left[0] -= 1
            return far if left[0] < 0 else 0.0

        def jumping() -> float:
            return real() + off()

        def jumping_ns() -> int:
            return real_ns() + int(off() * 1e9)

        outcome = Outcome("a clock that jumps", what)
        with (
            mock.patch.object(time, "time", jumping),
            mock.patch.object(time, "time_ns", jumping_ns),
        ):
            return [goes_on(place, outcome)]

    return do


def jobs(nursery: Callable[[], Nursery]) -> list[Job]:
    changes = (
        ("--seed", 1),
        ("--data.seed", 1),
        ("--model.router.kind", "mlp"),
        ("--phases.1.steps", 8),
        ("--data.batch-size", 2),
    )
    clocks: tuple[tuple[str, Callable[[random.Random], float]], ...] = (
        ("back by days", lambda rng: -rng.uniform(0, 1e6)),
        ("ahead by years", lambda rng: rng.uniform(0, 1e8)),
        ("by an hour", lambda rng: rng.choice((-3600.0, 3600.0))),
    )
    return [
        *(Job(GROUP, f"two runs {i}", _two_runs(nursery)) for i in range(2)),
        *(Job(GROUP, f"two preparations {i}", _two_preparations(nursery)) for i in range(3)),
        Job(GROUP, "lock held", _lock_held),
        *(Job(GROUP, f"no locks: {errno.errorcode[n]}", _no_locks(n)) for n in (errno.ENOLCK, errno.ENOTSUP)),
        *(Job(GROUP, f"changed: {flags[0]}", _changed(*flags)) for flags in changes),
        *(Job(GROUP, f"clock {what}", _clock(what, jump)) for what, jump in clocks),
    ]
