"""Decoding in bfloat16 at batch 1, 16 and 64, beside Hugging Face's `generate` (benchmarks/decoding.py)."""

import concurrent.futures
from collections.abc import Iterator
from typing import Any

from benchmarks import decoding
from benchmarks.gpu.process import reason
from benchmarks.measuring import timing

ROUNDS = 5


def rows(small: bool) -> Iterator[dict[str, Any]]:
    size, batches = (decoding.SMALL, (1, 2)) if small else (decoding.FULL, (1, 16, 64))
    competitors = decoding.Competitors(size, (1,), timing.threads(), dtype="bfloat16")
    works = {batch: competitors.ours(batch) for batch in batches}
    # They compile at their first call: all together.
    with concurrent.futures.ThreadPoolExecutor(timing.threads()) as pool:
        for calls in works.values():
            for call in calls.values():
                pool.submit(call)
    for batch, calls in works.items():
        yield from measure(competitors, calls, batch, small)
    # After ours alone, so that whatever PyTorch does to this process costs no line of ours.
    if competitors.theirs is not None:
        for batch, calls in works.items():
            yield from measure(
                competitors, {"vanilla": calls["vanilla"], "hf": competitors.theirs(batch)}, batch, small
            )


def measure(
    competitors: decoding.Competitors, calls: dict[str, decoding.Decoding], batch: int, small: bool
) -> Iterator[dict[str, Any]]:
    """A row per model, and one of ratios."""
    good = {}
    for name, call in calls.items():
        try:
            timing.warm_up({name: call}, 1)
            good[name] = call
        except Exception as problem:
            yield {"failed": f"{name} at batch {batch}: {reason(problem)}"}
    if not good:
        return
    seconds = decoding.in_turn(good, 2 if small else ROUNDS)
    for name, speed in competitors.speeds(seconds, batch).items():
        if name == "hf" or "hf" not in calls:
            yield {"model": name, "batch": batch} | speed
    for fast, slow in competitors.pairs():
        # Speeds divide the other way round than seconds.
        if (ratio := timing.ratio(seconds, slow, fast)) is not None:
            quartiles = timing.quartiles(timing.ratios(seconds, slow, fast))
            yield {"pair": f"{fast} over {slow}", "batch": batch, "ratio": ratio, "quartiles": quartiles}
