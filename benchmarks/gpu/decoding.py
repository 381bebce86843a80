"""Decoding in bfloat16 at batch 1, 16 and 64, beside Hugging Face's `generate` (benchmarks/decoding.py)."""

from collections.abc import Iterator
from typing import Any

from benchmarks import decoding


def rows(small: bool) -> Iterator[dict[str, Any]]:
    size = decoding.SMALL if small else decoding.FULL
    for batch in (1, 2) if small else (1, 16, 64):
        found = decoding.measure(size, 2 if small else 3, (1,), (batch,), 2, dtype="bfloat16")
        for name, row in found["decoding"].items():
            yield {"model": name.split()[0], "batch": batch} | row
        yield {"batch": batch} | {name: value for name, value in found.items() if "_over_" in name}
