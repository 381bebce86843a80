"""What was measured of each arm's train step: `measure.json`."""

import dataclasses
import os
import platform
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from mom_jax.fields import ConfigError
from train.files import read_record, write_record
from train.reporting.history import is_number
from train.steps import timing
from train.study.plan import Plan
from train.study.records import locked

MEASURE = "measure.json"
# What it has, without a checksum where an older version wrote it.
_KNOWN = ("baseline", "rounds", "device", "devices", "machine", "jax", "arms")


@dataclasses.dataclass(frozen=True)
class Speed:
    """An arm's train step, timed in turn with the others'.

    seconds: of a step, round by round. tokens: of a step. peak, temporaries: bytes on a device. trained: whether the
    parameters were those of a finished run.
    """

    seconds: list[float]
    tokens: int
    peak: int
    temporaries: int
    trained: bool


def write_measure(plan: Plan, speeds: Mapping[str, Speed]) -> None:
    """Writes what was measured of the arms, their baselines among them."""
    found, seconds = {}, {name: own.seconds for name, own in speeds.items()}
    for name, own in speeds.items():
        base = plan.study.baselines[name]
        faster = [own.tokens / speeds[base].tokens * ratio for ratio in timing.ratios(seconds, base, name)]
        found[name] = {
            "tokens_per_s": own.tokens / statistics.median(own.seconds),
            "speed_ratio": statistics.median(faster),
            "speed_ratio_quartiles": timing.quartiles(faster),
            "peak_bytes": own.peak,
            "temporary_bytes": own.temporaries,
            "parameters": "of a finished run" if own.trained else "new",
        }
    about = {
        "baseline": plan.study.baseline,
        "rounds": len(next(iter(speeds.values())).seconds),
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "machine": platform.processor() or platform.machine(),
        "jax": jax.__version__,
    }
    with locked(plan.folder):
        write_record(plan.folder / MEASURE, {**about, "arms": found}, indent=1)


def read_measure(folder: Path) -> dict[str, dict[str, Any]]:
    """By arm what was measured; nothing where that has not been done."""
    file = folder / MEASURE
    if not os.path.lexists(file):
        return {}
    try:
        arms: Any = read_record(file, str(file), _KNOWN).get("arms")
        if not isinstance(arms, dict) or not all(map(_is_speed, arms.values())):
            raise ConfigError(f"{file}: must have the speeds of arms")
    except ConfigError as error:
        raise ConfigError(f"{error}; delete it and measure again") from None
    return arms


def _is_speed(value: Any) -> bool:
    numbers = ("tokens_per_s", "speed_ratio", "peak_bytes")
    return isinstance(value, dict) and all(is_number(value.get(name)) and value[name] > 0 for name in numbers)
