"""Calls timed side by side on a machine whose speed changes."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Call = Callable[[], Any]
# Seconds of each named call, round by round.
Seconds = dict[str, list[float]]


def interleaved(
    calls: Mapping[str, Call],
    rounds: int,
    *,
    limit: float = float("inf"),
    clock: Callable[[], float] = time.perf_counter,
) -> Seconds:
    """Times every call once a round, in turn: a change of the machine's speed meets all of them.

    Each round starts with another call, and every other round goes backwards, so that no call always follows the same
    one. Calls must be warmed up and return when their work is done. limit: a call that has taken so many seconds in
    all takes no part in further rounds. clock: `time.process_time` counts the work of all threads of this process,
    whoever else has the machine.
    """
    names, seconds = list(calls), Seconds({name: [] for name in calls})
    for turn in range(rounds if names else 0):
        start = turn % len(names)
        order = names[start:] + names[:start]
        for name in reversed(order) if turn % 2 else order:
            if sum(seconds[name]) >= limit:
                continue
            begin = clock()
            calls[name]()
            seconds[name].append(clock() - begin)
    return seconds


def warm_up(calls: Mapping[str, Call], times: int = 2) -> None:
    """Calls everything: the first calls fetch fresh memory."""
    for call in calls.values():
        for _ in range(times):
            call()


def medians(seconds: Seconds) -> dict[str, float]:
    """The median seconds of each call."""
    return {name: statistics.median(values) for name, values in seconds.items()}


def ratios(seconds: Seconds, over: str, under: str) -> list[float]:
    """Seconds of `over` per second of `under`, round by round; empty where one of them was not timed."""
    pairs = zip(seconds.get(over, []), seconds.get(under, []), strict=False)
    return [a / b for a, b in pairs]


def ratio(seconds: Seconds, over: str, under: str) -> float | None:
    """The median over the rounds of the round's own ratio; None where one of the two was not timed."""
    values = ratios(seconds, over, under)
    return statistics.median(values) if values else None


def quartiles(values: list[float]) -> list[float] | None:
    """The lower and upper quartile: how far a median is to be trusted."""
    return [float(q) for q in np.percentile(values, (25, 75))] if values else None
