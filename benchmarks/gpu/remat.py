"""What the backward pass keeps: time and temporaries of the step of benchmarks/gpu/step.py by policy."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from benchmarks.gpu.step import compile_models, models, timed
from benchmarks.measuring import timing
from benchmarks.step import REMATS


def rows(small: bool) -> Iterator[dict[str, Any]]:
    size, configs = models(small)
    changed: dict[str, Any] = {}
    for name in ("vanilla", "K=1"):
        for policy in REMATS:
            fields: Any = {"remat": policy}
            changed[f"{name} {policy}"] = dataclasses.replace(configs[name], **fields)
    works, failed = compile_models(changed, size)
    yield from failed
    seconds, failed = timed({name: work.call for name, work in works.items()}, small)
    yield from failed
    middle = timing.medians(seconds)
    for name in seconds:
        model, policy = name.split()
        yield {
            "model": model,
            "policy": policy,
            "milliseconds": 1e3 * middle[name],
            "over_none": timing.ratio(seconds, name, f"{model} none"),
            "temp_bytes": works[name].compiled.temp_bytes,
            "total_bytes": works[name].compiled.total_bytes,
        }
