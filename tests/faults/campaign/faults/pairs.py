"""Faults of one of two processes that train one run together: both are started again, until the run is done."""

import functools
import random
import shutil
import signal
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from campaign.moments import AFTER, begun, unfinished
from campaign.nursery import Child, Nursery
from campaign.outcomes import Job, Outcome, Said
from campaign.workshop import PHASES, STEPS, End, Place, end_of, resumed_at, steps_done

GROUP = "One of two processes"
MOMENTS = ("compiling", "in a step", "saving", "before the checksums")
RUNS = 4  # of which one of the two is killed at each of these moments
ONE = PHASES[:1]  # phase, whose programs compile more quickly; processes divide a second one no differently
SECONDS = 1000.0  # at most, for a whole run
# Seconds in which the other one has to end by itself; so long it waits for one that does not start.
PATIENCE, JOINING = 150.0, 60


class Pair:
    """Two processes, each with a device of its own, started together."""

    def __init__(self, place: Place, nursery: Nursery) -> None:
        self.place = place
        with socket.socket() as server:
            server.bind(("127.0.0.1", 0))
            port = server.getsockname()[1]
        meeting = (
            "--coordinator",
            f"127.0.0.1:{port}",
            "--processes",
            2,
            "--join-timeout",
            JOINING,
            "--mesh.fsdp",
            2,
            "--checkpoint.keep",
            1,
        )
        self.had = unfinished(place.run)
        flags = [place.shop.one_phase if flag == place.shop.experiment else flag for flag in place.flags()]
        self.both = [
            nursery.start("train.main", (*flags, *meeting, "--process", i), place.folder, f"process{i}")
            for i in range(2)
        ]

    def reach(self, moment: str, rng: random.Random) -> bool:
        came = begun(moment, self.place, self.had, rng.randint(1, STEPS - 1))
        while not came():
            if any(child.poll() is not None for child in self.both):
                return False
            time.sleep(0.005)
        time.sleep(rng.uniform(0, AFTER[moment]))
        return all(child.poll() is None for child in self.both)

    def ended(self, seconds: float = SECONDS) -> list[Said]:
        return [Said(child.wait(seconds), child.out, child.err) for child in self.both]

    def end(self) -> None:
        for child in self.both:
            child.signal(signal.SIGKILL)
            child.wait()


def _other_ends(pair: Pair, other: Child, outcome: Outcome) -> Said:
    """Whether the process that is left ends by itself, and says why."""
    begun = time.monotonic()
    code = other.wait(PATIENCE)
    seconds = time.monotonic() - begun
    outcome.expect(code not in (0, -signal.SIGKILL), f"the other one ended with {code} after {seconds:.0f} s")
    said = Said(code, other.out, other.err)
    outcome.what += f"; the other one ended after {seconds:.0f} s with {code}"
    return said


def _chain(moments: Sequence[str], whole: Callable[[], End], nursery: Callable[[], Nursery]) -> Callable:
    def do(place: Place) -> list[Outcome]:
        outcomes: list[Outcome] = []
        reference = whole()
        for moment in moments:
            pair, which = Pair(place, nursery()), place.rng.randrange(2)
            try:
                if pair.reach(moment, place.rng):
                    pair.both[which].signal(signal.SIGKILL)
                    outcome = Outcome(
                        f"killed (SIGKILL) {moment}", f"{steps_done(place.run)} steps done; process {which}"
                    )
                    _resumed(outcomes, Said(0, "", pair.both[0].err))
                    _other_ends(pair, pair.both[1 - which], outcome)
                    outcome.happened = "the other ended by itself; then the same end"
                    outcomes.append(outcome)
            finally:
                pair.end()
        _finish(place, outcomes, reference, nursery())
        return outcomes

    return do


def _finish(place: Place, outcomes: list[Outcome], reference: End, nursery: Nursery) -> None:
    said = Pair(place, nursery).ended()
    _resumed(outcomes, said[0])
    if outcomes:
        last = outcomes[-1]
        for one in said:
            last.wrong += one.complaints()
            last.expect(one.code == 0, f"the last start ended with {one.code}: {one.err[-300:]!r}")
        if not last.wrong:
            place.compare(last, reference=reference, phases=ONE)


def _resumed(outcomes: list[Outcome], said: Said) -> None:
    if outcomes and ("resuming at" in said.err or "finished before" in said.err):
        done = int(outcomes[-1].what.split()[0])
        outcomes[-1].steps_lost = max(outcomes[-1].steps_lost, done - resumed_at(said, done))


def _signalled(
    number: int, codes: tuple[int, int], whole: Callable[[], End], nursery: Callable[[], Nursery]
) -> Callable:
    """One of the two gets a signal; both stop after the same step."""

    def do(place: Place) -> list[Outcome]:
        reference, outcomes = whole(), []
        pair = Pair(place, nursery())
        try:
            if pair.reach("in a step", place.rng):
                which = place.rng.randrange(2)
                pair.both[which].signal(number)
                outcome = Outcome(f"{signal.Signals(number).name} to one", f"{steps_done(place.run)} steps done")
                for child, said in zip(pair.both, pair.ended(), strict=True):
                    outcome.wrong += said.complaints()
                    expected = codes[child is not pair.both[which]]
                    outcome.expect(said.code == expected, f"exit code {said.code}, not {expected}: {said.err[-300:]!r}")
                outcome.happened = "both stopped after the same step; then the same end"
                outcomes.append(outcome)
        finally:
            pair.end()
        _finish(place, outcomes, reference, nursery())
        return outcomes

    return do


def _hanging(whole: Callable[[], End], nursery: Callable[[], Nursery]) -> Callable:
    """One hangs for good: the other ends after a time and says so."""

    def do(place: Place) -> list[Outcome]:
        reference, outcomes = whole(), []
        pair = Pair(place, nursery())
        try:
            if pair.reach("in a step", place.rng):
                pair.both[1].signal(signal.SIGSTOP)
                outcome = Outcome("hangs for good (SIGSTOP)", f"{steps_done(place.run)} steps done")
                _other_ends(pair, pair.both[0], outcome)
                outcome.happened = "the other ended by itself; then the same end"
                outcomes.append(outcome)
        finally:
            pair.end()
        _finish(place, outcomes, reference, nursery())
        return outcomes

    return do


def jobs(nursery: Callable[[], Nursery]) -> list[Job]:
    ends: dict[Path, End] = {}

    def whole(place: Place) -> End:
        """Of an uninterrupted run of two processes."""
        folder = place.shop.folder
        if folder not in ends:
            own = Place(place.shop, folder / "pair", place.rng)
            own.folder.mkdir(exist_ok=True)
            if not (own.run / "report.html").exists():
                shutil.rmtree(own.run, ignore_errors=True)
                said = Pair(own, nursery()).ended()
                assert [one.code for one in said] == [0, 0], said
            ends[folder] = end_of(own.run, ONE)
        return ends[folder]

    def with_whole(make: Callable[..., Callable]) -> Callable[[Place], list[Outcome]]:
        return lambda place: make(whole=functools.partial(whole, place), nursery=nursery)(place)

    found = []
    for number in range(RUNS):
        found.append(Job(GROUP, f"one of two killed {number}", with_whole(functools.partial(_chain, MOMENTS))))
    for number, codes in ((signal.SIGTERM, (0, 0)), (signal.SIGINT, (130, 0))):
        one = with_whole(functools.partial(_signalled, number, codes))
        found.append(Job(GROUP, f"one of two: {number.name}", one))
    return [*found, Job(GROUP, "one of two hangs", with_whole(_hanging))]
