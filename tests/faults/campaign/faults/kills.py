"""Signals at random moments of a run by one process; the same command is given again until it is done."""

import random
import signal
import time
from collections.abc import Callable

from campaign.judging import resumed
from campaign.moments import MOMENTS, Started
from campaign.nursery import Nursery
from campaign.outcomes import Job, Outcome, Said
from campaign.workshop import Place, steps_done

# Runs to which that happens, and how often to each.
CHAINS = (
    ("killed (SIGKILL)", 10, 6),
    ("SIGTERM", 1, 6),
    ("Ctrl-C (SIGINT)", 1, 6),
    ("Ctrl-C or SIGTERM twice", 1, 5),
    ("stopped and continued (SIGSTOP, SIGCONT)", 2, 1),
)

# Sends what a kind of fault sends.
Send = Callable[[Started, random.Random], None]


def _kill(started: Started, rng: random.Random) -> None:
    started.child.send_signal(signal.SIGKILL)


def _terminate(started: Started, rng: random.Random) -> None:
    started.child.send_signal(signal.SIGTERM)


def _interrupt(started: Started, rng: random.Random) -> None:
    started.child.send_signal(signal.SIGINT)


def _twice(started: Started, rng: random.Random) -> None:
    number = rng.choice((signal.SIGINT, signal.SIGTERM))
    started.child.send_signal(number)
    time.sleep(rng.uniform(0, 0.1))
    started.child.send_signal(number)


def _stop_and_go(started: Started, rng: random.Random) -> None:
    started.child.send_signal(signal.SIGSTOP)
    time.sleep(rng.uniform(0.5, 2))
    started.child.send_signal(signal.SIGCONT)


# By the words of the table: what is sent, and the exit codes that are right for it.
SIGNALS: dict[str, tuple[Send, tuple[int, ...]]] = {
    "killed (SIGKILL)": (_kill, (-signal.SIGKILL,)),
    # Before training there is nothing to save: the system ends the program.
    "SIGTERM": (_terminate, (0, -signal.SIGTERM)),
    "Ctrl-C (SIGINT)": (_interrupt, (130,)),
    "Ctrl-C or SIGTERM twice": (_twice, (0, 130, -signal.SIGINT, -signal.SIGTERM)),
    "stopped and continued (SIGSTOP, SIGCONT)": (_stop_and_go, (0,)),
}


def _chain(kind: str, moments: list[str], nursery: Callable[[], Nursery]) -> Callable[[Place], list[Outcome]]:
    """One run to which that happens at each of these moments, one after the other."""

    def do(place: Place) -> list[Outcome]:
        send, exits = SIGNALS[kind]
        place.cache = place.folder / "cache"
        outcomes: list[Outcome] = []
        for moment in moments:
            started = Started(place, nursery(), moment)
            reached = started.reach(moment, place.rng)
            if reached:
                send(started, place.rng)
            code = started.child.wait(300)
            said = Said(code, "", started.err)
            resumed(outcomes, said)
            if reached:
                outcome = Outcome(f"{kind} {moment}", f"{steps_done(place.run)} steps done")
                outcome.wrong += said.complaints()
                outcome.expect(code in exits, f"exit code {code}: {said.err[-300:]!r}")
                outcome.happened = "the same end"
                outcomes.append(outcome)
            else:
                assert code == 0, said.err
        last = Started(place, nursery(), "")
        said = Said(last.child.wait(300), "", last.err)
        resumed(outcomes, said)
        if outcomes:
            outcomes[-1].wrong += said.complaints()
            if outcomes[-1].expect(said.code == 0, f"the last start ended with {said.code}: {said.err[-300:]!r}"):
                place.compare(outcomes[-1])
        return outcomes

    return do


def jobs(nursery: Callable[[], Nursery]) -> list[Job]:
    rng = random.Random(18)
    found = []
    for kind, runs, each in CHAINS:
        for number in range(runs):
            moments = sorted(rng.sample(MOMENTS, each), key=MOMENTS.index)
            found.append(Job("One process", f"{kind} {number}", _chain(kind, moments, nursery)))
    return found
