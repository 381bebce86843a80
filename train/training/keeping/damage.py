"""What a run's folder has lost since it was written: damaged checkpoints are set aside, gaps in the log are said."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mom_jax.fields import ConfigError, from_dict
from train.checkpoints import steps
from train.checkpoints.locate import FOLDER
from train.checkpoints.manager import Meta
from train.checkpoints.manifest import Problem
from train.config import Config
from train.reporting.metrics import FILE
from train.training.run import differences


def set_damaged_aside(config: Config) -> list[str]:
    """Renames the newest checkpoints of a run until one is whole, which training goes on from; a line for each.

    Raises ConfigError where there is none before them, so that nothing is begun anew unasked; and where the bytes of a
    file have changed though none is missing. Copies and crashes leave files missing or short; that takes a disk or a
    memory that fails, and somebody should look. The same command goes on then.
    """
    run = Path(config.run).expanduser()
    lines, rotten, good = [], False, None
    for phase in reversed(config.phases):
        folder = run / FOLDER / phase.name
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f"run={config.run!r}: {folder} must be a folder, of the phase's checkpoints")
        for step in steps.ordered(folder):
            wrong = steps.problem(folder, step) or _foreign(config, folder, step)
            if wrong is None:
                good = folder / str(step)
                break
            place = steps.set_aside(folder, step)
            rotten |= wrong.rotten
            lines.append(f"checkpoint {folder / str(step)} is damaged ({wrong}); set aside as {place.name}")
        if good is not None:
            break
    if good is None and (aside := sorted(run.glob(f"{FOLDER}/*/*{steps.DAMAGED}*"))):
        said = "; ".join(lines) or f"{aside[-1]} is damaged"
        again = f"delete the folders *{steps.DAMAGED}* to begin from the start"
        raise ConfigError(f"run={config.run!r}: {said}; no checkpoint of this run is whole: {again}")
    if rotten:
        found = "the disk or the memory may be failing; the same command goes on from"
        raise ConfigError(f"run={config.run!r}: {'; '.join(lines)}; {found} {good}")
    return lines


def _foreign(config: Config, phase: Path, step: int) -> Problem | None:
    """Of a checkpoint that another run has written."""
    try:
        theirs = from_dict(Config, steps.described(phase, step).get("config"))
    except ConfigError:
        return None  # whoever reads it says what is wrong
    changed = differences(theirs, config)
    return Problem(f"is of a run with another configuration ({'; '.join(changed)})") if changed else None


def changed_log(run: Path, meta: Meta) -> list[str]:
    """A line where the log is not what it was when a checkpoint was saved."""
    if meta.log.fits(run / FILE):
        return []
    text = f"the log {FILE} has changed since step {meta.step} of {meta.phase} was saved"
    return [f"{text}: its numbers, and those of its report, cannot be trusted; training goes on from its checkpoint"]


def missing_steps(config: Config, records: Iterable[dict[str, Any]], phase: str, step: int) -> list[str]:
    """A line where a log has not all steps up to `step` of `phase`, its checkpoint's."""
    logged: dict[str, set[int]] = {row.name: set() for row in config.phases}
    for record in records:
        if record.get("kind") == "train" and record.get("phase") in logged and isinstance(record.get("step"), int):
            logged[record["phase"]].add(record["step"])
    names = [row.name for row in config.phases]
    due = [(row.name, row.steps) for row in config.phases[: names.index(phase)]] + [(phase, step)]
    lost, begin = 0, None
    for name, last in due:
        first = 1
        if config.resume is not None:  # another run has what came before
            first = min(logged[name], default=last + 1)
        there = {number for number in logged[name] if first <= number <= last}
        missing = max(last + 1 - first, 0) - len(there)
        if missing and begin is None:
            begin = f"step {next(number for number in range(first, last + 1) if number not in there)} of {name}"
        lost += missing
    if begin is None:
        return []
    whole = sum(last for _, last in due)
    text = f"the log {FILE} has lost {lost} of {whole} steps, the first is {begin}"
    return [f"{text}; training goes on from its checkpoint, but the log, its report and signs stay incomplete"]
