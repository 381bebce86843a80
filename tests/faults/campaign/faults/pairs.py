"""Faults of one of two processes that train one run together: both are started again, until the run is done."""

import functools
import random
import resource
import shutil
import signal
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from campaign.judging import resumed
from campaign.moments import reach, unfinished
from campaign.nursery import Child, Nursery
from campaign.outcomes import Job, Outcome, Said
from campaign.workshop import PHASES, STEPS, End, Place, end_of, steps_done

GROUP = "One of two processes"
MOMENTS = ("compiling", "in a step", "saving", "before the checksums")
RUNS = 4  # of which one of the two is killed at each of these moments
ONE = PHASES[:1]  # phase, whose programs compile more quickly; processes divide a second one no differently
SECONDS = 1000.0  # at most, for a whole run
# Seconds in which the other one has to end by itself; so long it waits for one that does not start.
PATIENCE, JOINING = 150.0, 60
LOST = 300.0  # at most, until both have ended of which one has lost its disk


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
        return reach(moment, self.place, self.had, rng, self.both)

    def ended(self, seconds: float = SECONDS) -> list[Said]:
        return [Said(child.wait(seconds), child.out, child.err) for child in self.both]

    def end(self) -> None:
        for child in self.both:
            child.send_signal(signal.SIGKILL)
            child.wait()


# What is done to a pair at a moment of its run.
Fault = Callable[[Pair, str], Outcome]


def _killed(pair: Pair, moment: str) -> Outcome:
    which = pair.place.rng.randrange(2)
    pair.both[which].send_signal(signal.SIGKILL)
    outcome = Outcome(f"killed (SIGKILL) {moment}", f"{steps_done(pair.place.run)} steps done; process {which}")
    _other_ends(pair.both[1 - which], outcome)
    return outcome


def _signalled(number: int, codes: tuple[int, int]) -> Fault:
    """One of the two gets a signal; both stop after the same step. codes: of that one, and of the other."""

    def fault(pair: Pair, moment: str) -> Outcome:
        which = pair.place.rng.randrange(2)
        pair.both[which].send_signal(number)
        outcome = Outcome(f"{signal.Signals(number).name} to one", f"{steps_done(pair.place.run)} steps done")
        ended = pair.ended()
        done = steps_done(pair.place.run) == STEPS  # they stop after the step that they agree on, which may be the last
        for child, said in zip(pair.both, ended, strict=True):
            outcome.wrong += said.complaints()
            expected = 0 if done else codes[child is not pair.both[which]]
            outcome.expect(said.code == expected, f"exit code {said.code}, not {expected}: {said.err[-300:]!r}")
        outcome.happened = "both stopped after the same step; then the same end"
        return outcome

    return fault


def _hanging(pair: Pair, moment: str) -> Outcome:
    """One hangs for good: the other ends after a time and says so."""
    pair.both[1].send_signal(signal.SIGSTOP)
    outcome = Outcome("hangs for good (SIGSTOP)", f"{steps_done(pair.place.run)} steps done")
    _other_ends(pair.both[0], outcome)
    return outcome


def _without_disk(which: int) -> Fault:
    """One of the two cannot write files any longer, as on a disk of its own that is full: both end."""

    def fault(pair: Pair, moment: str) -> Outcome:
        resource.prlimit(pair.both[which].pid, resource.RLIMIT_FSIZE, (2000, 2000))
        outcome = Outcome("loses its disk", f"{steps_done(pair.place.run)} steps done; process {which}")
        begun = time.monotonic()
        ended = pair.ended(LOST)
        seconds = time.monotonic() - begun
        codes = [said.code for said in ended]
        outcome.what += f"; they ended after {seconds:.0f} s with {codes}"
        outcome.happened = "both ended by themselves; then the same end"
        outcome.expect(codes[which] == 75, f"the one without a disk ended with {codes[which]}, not 75")
        outcome.expect(codes[1 - which] not in (0, -signal.SIGKILL), f"the other one ended with {codes[1 - which]}")
        return outcome

    return fault


def _other_ends(other: Child, outcome: Outcome) -> None:
    """Whether the process that is left ends by itself."""
    begun = time.monotonic()
    code = other.wait(PATIENCE)
    seconds = time.monotonic() - begun
    outcome.expect(code not in (0, -signal.SIGKILL), f"the other one ended with {code} after {seconds:.0f} s")
    outcome.what += f"; the other one ended after {seconds:.0f} s with {code}"
    outcome.happened = "the other ended by itself; then the same end"


def _chain(
    moments: Sequence[str],
    fault: Fault,
    whole: Callable[[Place], End],
    nursery: Callable[[], Nursery],
    place: Place,
) -> list[Outcome]:
    """One run to which that happens at each of these moments, one after the other."""
    reference, outcomes = whole(place), []
    for moment in moments:
        pair = Pair(place, nursery())
        try:
            if pair.reach(moment, place.rng):
                outcome = fault(pair, moment)
                resumed(outcomes, Said(0, "", pair.both[0].err))
                outcomes.append(outcome)
        finally:
            pair.end()
    _finish(place, outcomes, reference, nursery())
    return outcomes


def _finish(place: Place, outcomes: list[Outcome], reference: End, nursery: Nursery) -> None:
    said = Pair(place, nursery).ended()
    resumed(outcomes, said[0])
    if outcomes:
        last = outcomes[-1]
        for one in said:
            last.wrong += one.complaints()
            last.expect(one.code == 0, f"the last start ended with {one.code}: {one.err[-300:]!r}")
        if not last.wrong:
            place.compare(last, reference=reference, phases=ONE)


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

    def job(name: str, moments: Sequence[str], fault: Fault) -> Job:
        return Job(GROUP, name, functools.partial(_chain, moments, fault, whole, nursery))

    return [
        *(job(f"one of two killed {number}", MOMENTS, _killed) for number in range(RUNS)),
        *(
            job(f"one of two: {number.name}", ("in a step",), _signalled(number, codes))
            for number, codes in ((signal.SIGTERM, (0, 0)), (signal.SIGINT, (130, 0)))
        ),
        *(job(f"one of two loses its disk {which}", ("in a step",), _without_disk(which)) for which in range(2)),
        job("one of two hangs", ("in a step",), _hanging),
    ]
