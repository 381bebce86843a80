"""What was measured of each arm's train step: `measure.json`."""

import dataclasses
import platform
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from mom_jax.fields import ConfigError
from train.files import read_json, to_json, write_whole
from train.steps import timing
from train.study.plan import Plan
from train.study.records import locked

MEASURE = "measure.json"


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
        write_whole(plan.folder / MEASURE, to_json({**about, "arms": found}, indent=1))


def read_measure(folder: Path) -> dict[str, dict[str, Any]]:
    """By arm what was measured; nothing where that has not been done."""
    file = folder / MEASURE
    if not file.is_file():
        return {}
    try:
        arms: dict[str, dict[str, Any]] = read_json(file, str(file))["arms"]
    except (KeyError, TypeError) as error:
        raise ConfigError(f"{file}: cannot be read ({error}); delete it and measure again") from None
    except ConfigError as error:
        raise ConfigError(f"{error}; delete it and measure again") from None
    return arms
