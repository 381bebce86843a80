"""How many steps fit: from each arm's measured speed to the steps of all phases, kept in `sizing.json`."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mom_jax.fields import ConfigError
from train.config import Config
from train.files import read_record, write_record
from train.study.packed.programs import CALL
from train.study.plan import Run
from train.study.records import locked

SIZING = "sizing.json"
# Of the time, what is not planned for: steps become slower as tokens are routed less evenly.
RESERVE = 0.1
# Seconds of a run, or of a first phase, beside its steps and evaluations.
OVERHEAD = 0.3


@dataclasses.dataclass(frozen=True)
class Cost:
    """Seconds of a training step and of all evaluations of a run, of an arm."""

    step: float
    evaluations: float

    def of(self, steps: int) -> float:
        return steps * self.step + self.evaluations + OVERHEAD


def sized(base: Config, runs: Sequence[Run], costs: Mapping[str, Cost], seconds: float) -> dict[str, int]:
    """The steps of the base's phases by name with which all `runs` take `seconds`: all phases longer, or shorter, by
    the same factor, in whole calls. First phases that are shared count once, at the cost of the first arm that has it.

    Raises ConfigError where that leaves too few.
    """
    work = [(run.config, costs[run.arm]) for run in runs]
    starts = {run.start.run: (run.start, costs[run.arm]) for run in reversed(runs) if run.start is not None}
    work += starts.values()
    fixed = sum(cost.of(0) for _, cost in work)
    by_steps = sum(phase.steps * cost.step for config, cost in work for phase in config.phases)
    factor = (seconds * (1 - RESERVE) - fixed) / by_steps
    found = {phase.name: int(phase.steps * factor) // CALL * CALL for phase in base.phases}
    for phase in base.phases:
        least = max(CALL, phase.optim.warmup_steps + phase.optim.decay_steps)
        if found[phase.name] < least:
            had = f"{max(found[phase.name], 0)} steps of {phase.name}, which needs {least}"
            raise ConfigError(f"seconds: {len(work)} runs in the {seconds:.0f} s that are left would have {had}")
    return found


def read_sizing(folder: Path) -> dict[str, Any] | None:
    """What was written; None where nothing was."""
    file = folder / SIZING
    if not file.is_file():
        return None
    try:
        record = read_record(file, str(file), known=("tokens", "steps", "costs"))
        return {"tokens": record["tokens"], "steps": record["steps"], "costs": record["costs"]}
    except (KeyError, TypeError) as error:
        raise ConfigError(f"{file}: cannot be read ({error}); --fresh begins anew") from None
    except ConfigError as error:
        raise ConfigError(f"{error}; --fresh begins anew") from None


def write_sizing(folder: Path, tokens: str, steps: Mapping[str, Any], costs: Mapping[str, Cost]) -> None:
    """tokens: the digest of the file of tokens."""
    record = {"tokens": tokens, "steps": steps, "costs": {arm: dataclasses.asdict(cost) for arm, cost in costs.items()}}
    with locked(folder):
        write_record(folder / SIZING, record, indent=1)
