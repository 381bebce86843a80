"""What the backward pass keeps: time and temporaries of the step of benchmarks/gpu/step.py by policy."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from benchmarks import reference, timing
from benchmarks.gpu.step import models
from benchmarks.step import REMATS


def rows(small: bool) -> Iterator[dict[str, Any]]:
    size, configs = models(small)
    for name in ("vanilla", "K=1"):
        works = {}
        for policy in REMATS:
            changed: Any = {"remat": policy}
            works[policy] = reference.prepare(dataclasses.replace(configs[name], **changed), size)
        calls = {policy: work.call for policy, work in works.items()}
        timing.warm_up(calls)
        middle = timing.medians(timing.interleaved(calls, 3 if small else 8, limit=4))
        for policy, work in works.items():
            yield {
                "model": name,
                "policy": policy,
                "milliseconds": 1e3 * middle[policy],
                "temp_bytes": work.compiled.temp_bytes,
            }
