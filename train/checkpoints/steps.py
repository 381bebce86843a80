"""The checkpoints in a phase's folder: which there are, which are whole, and where those go that are not."""

import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mom_jax.fields import ConfigError, shown
from train.checkpoints import manifest
from train.checkpoints.manifest import Problem
from train.files import read_json

DAMAGED = ".damaged"  # what the name of a checkpoint that is set aside ends with

# What was found of a checkpoint in this process, as long as no file of it changes: programs look several times.
_known: dict[Path, tuple[object, Problem | None]] = {}


def steps(phase: Path) -> list[int]:
    """The steps of which there is a folder, in order; none where there is no folder of the phase."""
    try:
        return sorted(int(path.name) for path in phase.iterdir() if path.name.isdecimal() and path.name.isascii())
    except OSError:
        return []


def loss(phase: Path, step: int) -> float | None:
    """The validation loss that was measured at a step, if it was."""
    try:
        value = read_json(phase / str(step) / "metrics" / "metrics", "metrics")["loss"]
        return float(value) if math.isfinite(value) else None
    except (ConfigError, LookupError, TypeError, OverflowError):
        return None


def ordered(phase: Path, *, best: bool = False) -> list[int]:
    """The steps, the one to use first: the latest, or with `best` the one with the lowest validation loss (of those
    with the same the latest) before all that have none."""
    latest = steps(phase)[::-1]
    if not best:
        return latest
    losses = ((loss(phase, step), step) for step in latest)
    known = {step: math.inf if value is None else value for value, step in losses}
    return sorted(latest, key=lambda step: known[step])


def described(phase: Path, step: int) -> dict[str, Any]:
    """What a checkpoint says of itself (`train.checkpoints.manager.Meta`), as JSON; nothing where that cannot be read,
    which whoever reads the checkpoint says."""
    try:
        record = read_json(phase / str(step) / "meta" / "metadata", "meta", old=True)
    except ConfigError:
        return {}
    return record if isinstance(record, dict) else {}


def problem(phase: Path, step: int) -> Problem | None:
    """What is wrong with a checkpoint, all of which is read; None where nothing is. Raises OSError as
    `manifest.problem` does."""
    folder = phase / str(step)
    state = sorted(_states(folder))
    if folder not in _known or _known[folder][0] != state:
        _known[folder] = state, manifest.problem(folder) or _misplaced(phase, step)
    return _known[folder][1]


def _misplaced(phase: Path, step: int) -> Problem | None:
    """Of a checkpoint that lies where another one should."""
    record = described(phase, step)
    have = record.get("phase", phase.name), record.get("step", step)
    if have == (phase.name, step):
        return None
    return Problem(f"is of step {shown(have[1])} of {shown(have[0])}")


def there(phase: Path, step: int) -> bool:
    """Whether a checkpoint has not been removed or renamed meanwhile."""
    return (phase / str(step)).is_dir()


def _states(folder: Path) -> Iterator[tuple[str, int, int]]:
    """What tells that a file has changed since it was looked at."""
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                stat = os.lstat(path := os.path.join(place, name))
            except FileNotFoundError:  # deleted meanwhile, as training deletes what it needs no more
                continue
            yield path, stat.st_size, stat.st_ctime_ns


def set_aside(phase: Path, step: int) -> Path:
    """Renames a checkpoint, so that nothing takes it for one and nothing of it is lost; returns where it is."""
    for number in range(1000):
        place = phase / f"{step}{DAMAGED}{f'.{number}' if number else ''}"
        if not place.exists():
            (phase / str(step)).rename(place)
            return place
    raise OSError(f"{phase}: has a thousand damaged checkpoints of step {step}")


def remove(phase: Path, step: int) -> None:
    """Deletes a checkpoint: renamed first, so that it is never there in part."""
    place = phase / f".{step}.removed"
    (phase / str(step)).rename(place)
    shutil.rmtree(place, ignore_errors=True)


def remove_leftovers(phase: Path) -> None:
    """Deletes what a program that was killed had begun to `remove`."""
    for place in phase.glob(".*.removed"):
        shutil.rmtree(place, ignore_errors=True)


def superfluous(phase: Path, keep: int) -> list[int]:
    """The steps that need not stay beside the latest `keep` and the one with the lowest validation loss; of those that
    are not whole, as far as sizes tell, none counts and none is named."""
    whole = [step for step in steps(phase) if manifest.problem(phase / str(step), contents=False) is None]
    stay = set(whole[-keep:])
    evaluated = [step for step in ordered(phase, best=True) if step in whole and loss(phase, step) is not None]
    return [step for step in whole if step not in stay | set(evaluated[:1])]
