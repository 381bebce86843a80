"""What a study keeps: `study.json` (the arms that its results are of) and `results.jsonl` (a line for each run)."""

import contextlib
import os
import platform
import shutil
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import jax

from mom_jax.fields import MOST_SEED, ConfigError, from_dict, to_dict
from train import files
from train.config import Config
from train.files import (
    parse_json,
    read_bytes,
    read_record,
    to_json,
    with_checksum,
    without_checksum,
    write_record,
    write_whole,
    writing,
)
from train.reporting import metrics
from train.reporting.history import is_number
from train.study.plan import Plan, Run, fingerprint
from train.training.run import Busy, differences

STUDY, RESULTS = "study.json", "results.jsonl"

Result = dict[str, Any]

# What `study.json` has, without a checksum where an older version wrote it.
_STUDY = ("name", "question", "size", "baseline", "baselines", "seeds", "first_phase_seeded", "arms")


def _whole(value: Any) -> bool:
    return type(value) is int and abs(value) <= MOST_SEED


def _loss(value: Any) -> bool:
    return value is None or is_number(value)


def _pairs(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in value)


def _is_phase(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("run"), str)


def _exchange(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(losses, list) and all(map(_loss, losses)) for losses in value.values()
    )


# What must be true of a result's fields, also where it has no checksum; and what those are that one may lack.
_FIELDS: dict[str, Callable[[Any], bool]] = {
    "arm": lambda value: isinstance(value, str),
    "seed": _whole,
    "loss": _loss,
    **dict.fromkeys(("evaluated_tokens", "parameters", "active_parameters", "tokens", "own_tokens"), _whole),
    "flops_per_token": is_number,
    "seconds": _loss,
    "curve": lambda value: _pairs(value) and all(_whole(step) and _loss(loss) for step, loss in value),
    "routers": lambda value: isinstance(value, dict) and all(isinstance(side, dict) for side in value.values()),
    "after": lambda value: isinstance(value, dict) and all(isinstance(done, dict) for done in value.values()),
    "exchanged": _exchange,
    "similarity": lambda value: isinstance(value, dict) and all(map(_pairs, value.values())),
    "first_phase": lambda value: isinstance(value, list) and all(map(_is_phase, value)),
}
_ABSENT: dict[str, Any] = {"exchanged": {}, "similarity": {}, "first_phase": []}
# What results have that older versions wrote, without checksums.
_BARE = (*_FIELDS, "fingerprint", "steps", "run")


def key(result: Result) -> tuple[str, int]:
    """The arm and the seed, as a `Run` has them."""
    return result["arm"], result["seed"]


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """The study's files for this process alone, as long as it takes to write them."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with files.locked(folder / ".lock", f"out={str(folder.parent)!r}", wait=True):
            yield


def read_results(folder: Path) -> list[Result]:
    """Raises ConfigError for a file that is no list of results."""
    file = folder / RESULTS
    if not os.path.lexists(file):
        return []
    results = []
    for i, line in enumerate(read_bytes(file, str(file), metrics.MOST).splitlines(), 1):
        try:
            results.append(_result(line))
        except ValueError as error:
            again = "without the line, the result is made again"
            raise ConfigError(f"{file}, line {i}: {error}; {again}") from None
    return list({key(result): result for result in results}.values())


def _result(line: bytes) -> Result:
    """Raises ValueError for what is none. The file is written whole: its last line may not be half, as a log's may."""
    try:
        record = parse_json(line, RESULTS)
    except ConfigError:
        record = None
    if not isinstance(record, dict):
        raise ValueError("is no whole result of a study")
    result = without_checksum(record, _BARE)
    odd = next((name for name, good in _FIELDS.items() if not good(result.get(name, _ABSENT.get(name)))), None)
    if odd is not None:
        raise ValueError(f"is no result of a study (its {odd})")
    return result


def write_result(plan: Plan, result: Result) -> None:
    """Adds a result, or puts it in the place of the one of the same run; the file is in the order of the plan."""
    with locked(plan.folder):
        results = {key(row): row for row in [*read_results(plan.folder), result]}
        order = {run.key: i for i, run in enumerate(plan.runs)}
        _write(plan.folder, sorted(results.values(), key=lambda row: order.get(key(row), len(order))))


def found_elsewhere(plan: Plan, run: Run) -> Result | None:
    """The result of the same training in another study below the same folder, as this study's; None without one.

    What that study did after it is left out. Results that are another study's themselves do not count, nor does one
    without its run where this study has more to do with it.
    """
    same = fingerprint(plan.configs[run.arm])
    first = [] if run.start is None else [str(Path(run.start.run).relative_to(plan.root))]
    for file in sorted(plan.root.glob(f"*/{RESULTS}")):
        if file.parent == plan.folder:
            continue
        for row in read_results(file.parent):
            own = str(row.get("run", "")).startswith(f"{file.parent.name}/")
            before = [phase["run"] for phase in row.get("first_phase", ())]
            alike = own and (row["seed"], row.get("fingerprint"), before) == (run.seed, same, first)
            if alike and (not plan.study.after or folder_of(plan, run, row).is_dir()):
                return {**row, "arm": run.arm, "after": {}}
    return None


def trained_in(plan: Plan, run: Run) -> Path:
    """The folder of the run's checkpoints: its own, or that of the study that its result comes from."""
    result = next((row for row in read_results(plan.folder) if key(row) == run.key), {})
    return folder_of(plan, run, result)


def folder_of(plan: Plan, run: Run, result: Result) -> Path:
    """The same, of a run whose result was read."""
    return plan.root / result["run"] if "run" in result else run.folder


def _write(folder: Path, results: list[Result]) -> None:
    write_whole(folder / RESULTS, b"".join(to_json(with_checksum(row)) for row in results))


def check_study(plan: Plan) -> None:
    """Raises ConfigError, naming the arm and the field, where an arm with results or runs is not what it was."""
    old = _read_study(plan.folder)
    there = {row["arm"] for row in read_results(plan.folder)}
    folders = {arm.name: plan.folder / "runs" / arm.folder for arm in plan.study.arms}
    for name, config in plan.configs.items():
        before = old.get("arms", {}).get(name)
        if before is None or not (name in there or folders[name].exists()):
            continue
        theirs = from_dict(Config, before)
        lines = differences(theirs, config)
        if theirs.final_batches != config.final_batches:
            lines.append(f"final_batches: {theirs.final_batches} -> {config.final_batches}")
        if old["first_phase_seeded"] != plan.study.first_phase_seeded:
            lines.append(f"first_phase_seeded: {old['first_phase_seeded']} -> {plan.study.first_phase_seeded}")
        if lines:
            advice = "--fresh forgets what there is of it, another --out keeps it"
            raise ConfigError(f"arm {name!r}: has changed on top of old results ({'; '.join(lines)}); {advice}")


def write_study(plan: Plan) -> None:
    """Notes what the arms are. Raises ConfigError as `check_study` does."""
    with locked(plan.folder):
        check_study(plan)
        arms = _read_study(plan.folder).get("arms", {})
        arms |= {name: to_dict(config) for name, config in plan.configs.items()}
        record = {
            "name": plan.study.name,
            "question": plan.study.question,
            "size": plan.size,
            "baseline": plan.study.baseline,
            "baselines": plan.study.baselines,
            "seeds": plan.study.seeds_of(plan.size),
            "first_phase_seeded": plan.study.first_phase_seeded,
            "arms": arms,
        }
        write_record(plan.folder / STUDY, record, indent=1)


def _read_study(folder: Path) -> dict[str, Any]:
    file = folder / STUDY
    if not os.path.lexists(file):
        return {}
    try:
        record = read_record(file, str(file), _STUDY, old=True)
        if not isinstance(record.get("arms"), dict) or "first_phase_seeded" not in record:
            raise ConfigError(f"{file}: does not say what the arms were")
    except ConfigError as error:
        raise ConfigError(f"{error}; delete it if the arms are what they were") from None
    return record


def keep_programs(plan: Plan) -> None:
    """Seeds of an arm share its compiled programs, also from one process to the next."""
    if jax.config.values["jax_compilation_cache_dir"] is None and "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(plan.root.absolute() / "compiled" / platform.node()))


def forget(plan: Plan, arms: Collection[str]) -> None:
    """Removes the results and the runs of these arms; first phases stay, since they are known by what they are.

    Raises Busy where another process is training one of them.
    """
    if not plan.folder.is_dir():
        return
    with locked(plan.folder), contextlib.ExitStack() as stack:
        folders = [plan.folder / "runs" / arm.folder for arm in plan.study.arms if arm.name in arms]
        for file in (file for folder in folders for file in folder.glob("*/.lock")):
            if not stack.enter_context(files.locked(file, f"run={str(file.parent)!r}", wait=False)):
                raise Busy(f"run={str(file.parent)!r}: another process is training in this folder")
        _write(plan.folder, [row for row in read_results(plan.folder) if row["arm"] not in arms])
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
