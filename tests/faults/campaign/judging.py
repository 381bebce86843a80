"""The same command, given again after a fault until the run is done, and what it says on the way."""

from collections.abc import Callable, Collection, Sequence

from campaign.outcomes import Outcome, Said
from campaign.workshop import DONE, PHASES, Place, resumed_at


def goes_on(
    place: Place,
    outcome: Outcome,
    *,
    exits: Collection[int] = (0,),
    says: str | None = None,
    repair: Callable[[], object] | None = None,
    log: bool = True,
    done: int = DONE,
    flags: tuple[object, ...] = (),
    phases: Sequence[str] = PHASES,
) -> Outcome:
    """Trains to the end and compares.

    exits: with what the first start may end. says: what it has to say, unless nothing is lost or changed. repair: what
    a user does after an exit code that is not 0; without it the same command is simply given again. log: whether the
    log has to be as if nothing had happened. done: steps before the fault. phases: whose last checkpoints are compared.
    """
    first = last = place.train(*flags)
    outcome.wrong += first.complaints()
    outcome.expect(first.code in exits, f"exit code {first.code}: {first.err[-300:]!r}")
    told = says is not None and first.says(says)
    if first.code == 0:
        outcome.happened = "went on" + (", said" if told else "")
    else:
        # A line and an exit code of its own: nothing is silent from here on.
        told = outcome.expect(says is None or told, f"not said ({says}): {first.err[-300:]!r}")
        if repair is not None:
            repair()
        outcome.happened = f"stopped, exit code {first.code}; then went on" + (" when repaired" if repair else "")
        last = place.train(*flags)
        outcome.wrong += last.complaints()
        outcome.expect(last.code == 0, f"and then exit code {last.code}: {last.err[-300:]!r}")
    outcome.steps_lost = max(0, done - resumed_at(last, done))
    if last.code == 0:
        place.compare(outcome, log=log, told=told, phases=phases)
    return outcome


def refuses(outcome: Outcome, said: Said, says: str | None = None, code: int = 2, happened: str = "") -> Outcome:
    """A program ended with one line and an exit code."""
    outcome.wrong += said.complaints()
    outcome.expect(said.code == code, f"exit code {said.code}, not {code}: {said.err[-300:]!r}")
    outcome.expect(says is None or said.says(says), f"not said ({says}): {said.err[-300:]!r}")
    outcome.happened = happened or f"stopped, exit code {said.code}"
    outcome.silent |= said.code == 0
    return outcome


def resumed(outcomes: Sequence[Outcome], said: Said) -> None:
    """What the start after the last fault says of the steps that it cost, if it came so far."""
    if outcomes and ("resuming at" in said.err or "finished before" in said.err):
        done = int(outcomes[-1].what.split()[0])
        outcomes[-1].steps_lost = max(outcomes[-1].steps_lost, done - resumed_at(said, done))
