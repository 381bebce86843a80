"""What several runs are compared by: their figures, one record a row, and what their configurations differ in."""

import dataclasses
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mom_jax.analysis.cost import forward_flops_per_token, parameter_count
from mom_jax.config import SIDES
from mom_jax.fields import require, to_dict
from train.config import Phase
from train.reporting.history import Record, Run, is_number, latest_usage, router_value, understood
from train.reporting.insight import table_of
from train.reporting.page import summary_of

MOST_RUNS = 18  # that colours and styles of lines tell apart
# Fields that name places, not what is trained.
_PLACES = ("run", "resume", "data.cache", "wandb")
# Where these differ, losses are of other texts, or of other tokens of them.
HELD_OUT = (
    "data.source", "data.tokenizer", "data.vocab_size", "data.length", "data.packing", "data.validation_fraction",
    "data.on_bad", "final_batches",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Compared:
    """A run, and the name that readers see: of its folder, or its path where several folders have that name."""

    name: str
    folder: Path
    run: Run

    def positions(self, steps: Sequence[int], *, tokens: bool) -> list[float]:
        """Where steps lie on a common axis: as they are, or as millions of tokens that were trained on."""
        data = self.run.config.data if self.run.config is not None else None
        return [step * data.batch_size * data.length / 1e6 if tokens and data else float(step) for step in steps]


def opened(folders: Sequence[Path]) -> list[Compared]:
    """Reads the runs. Raises FileNotFoundError or ConfigError where one has no readable metrics, and ConfigError naming
    `run` where one is there twice, or there are too many."""
    require(len(folders) <= MOST_RUNS, "run", f"{len(folders)} runs", f"must be at most {MOST_RUNS}")
    resolved = [Path(folder).resolve() for folder in folders]
    for folder, place in zip(folders, resolved, strict=True):
        require(resolved.count(place) == 1, "run", str(folder), "is there twice")
    names = [place.name for place in resolved]
    shown = [name if names.count(name) == 1 else str(folder) for name, folder in zip(names, folders, strict=True)]
    runs = []
    for name, folder in zip(shown, folders, strict=True):
        with understood(Path(folder)):
            runs.append(Compared(name, Path(folder), Run(Path(folder))))
    return runs


def differences(runs: Sequence[Compared]) -> dict[str, list[Any]]:
    """By field, as flags name them, each run's value; None where it has no such field. Only of those that differ."""
    known = [_flat(_configuration(each.run)) for each in runs]
    names = list(dict.fromkeys(name for flat in known for name in flat))
    found = {name: [flat.get(name) for flat in known] for name in names}
    return {
        name: values
        for name, values in found.items()
        if any(value != values[0] for value in values)
        and not any(_below(name, place) for place in _PLACES)
        and not _is_default(name, values)
    }


def _is_default(name: str, values: Sequence[Any]) -> bool:
    """Whether a field of a phase that only some runs have says no more than that they have it."""
    _, _, field = name.removeprefix("phases.").partition(".")
    there = [value for value in values if value is not None]
    usual = _flat(to_dict(Phase("phase", 1)))
    absent = name.startswith("phases.") and len(there) < len(values) and field not in ("name", "steps", "model")
    return absent and field in usual and all(value == usual[field] for value in there)


def _below(name: str, place: str) -> bool:
    return name == place or name.startswith(f"{place}.")


def _configuration(run: Run) -> Any:
    """With the fields that the file lacks where it can be read; else as it is."""
    if run.config is not None:
        return to_dict(run.config)
    return run.raw if isinstance(run.raw, dict) else {}


def _flat(tree: Any, path: str = "") -> dict[str, Any]:
    """Lists of tables by their numbers; other lists are values."""
    if isinstance(tree, dict):
        pairs = tree.items()
    elif isinstance(tree, list) and tree and all(isinstance(item, dict) for item in tree):
        pairs = {str(i): item for i, item in enumerate(tree)}.items()
    else:
        return {path: tree}
    return {
        name: value
        for key, below in pairs
        for name, value in _flat(below, f"{path}.{key}" if path else str(key)).items()
    }


def final_figures(runs: Sequence[Compared]) -> list[Record]:
    """A row for each phase of each run: `summary`, what the model costs, and how far the loss is from the first run's
    in the phase of the same name."""
    rows: list[Record] = []
    for each in runs:
        for row in summary_of(each.run):
            model = each.run.model_of(row["phase"])
            length = each.run.config.data.length if each.run.config is not None else 0
            cost = {
                "active": None if model is None else parameter_count(model).active,
                "flops": None if model is None else forward_flops_per_token(model, length) / 1e6,
            }
            signs = len(each.run.of(row["phase"], "sign"))
            rows.append({"run": each.name, **row, **cost, "signs": signs, "difference": None})
    first = {row["phase"]: row for row in rows if row["run"] == runs[0].name}
    for row in rows:
        base = first.get(row["phase"], {}).get("validation_loss")
        if row["run"] != runs[0].name and is_number(base) and is_number(row["validation_loss"]):
            row["difference"] = row["validation_loss"] - base
    return rows


def routing_figures(runs: Sequence[Compared]) -> list[Record]:
    """A row for each side of each run's last phase with routers; None where the log does not say."""
    rows = []
    for each in runs:
        phase = routed_phase(each.run)
        if phase is None:
            continue
        latest = latest_usage(each.run.routed(phase)) or each.run.routed(phase)[-1]
        final = each.run.of(phase, "final")[-1:]
        analysis = each.run.of(phase, "analysis")
        for side in SIDES:
            if router_value(latest, side, "entropy") is None:
                continue
            rows.append(
                {
                    "run": each.name,
                    "phase": phase,
                    "side": side,
                    "step": latest["step"],
                    "entropy": _mean(router_value(latest, side, "entropy")),
                    "largest": _largest(router_value(latest, side, "usage")),
                    "skip": _number(router_value(latest, side, "skip")),
                    "taken": _number(router_value(latest, side, "taken")),
                    "exchange": _exchange(final[0]) if final else None,
                    "similarity": _last(analysis, "similarity", side, "outputs"),
                    "depth": _last(analysis, "depth", "mean"),
                }
            )
    return rows


def routed_phase(run: Run) -> str | None:
    """The last phase with routers."""
    return next((phase for phase in reversed(run.phases) if run.routed(phase)), None)


def _number(value: Any) -> float | None:
    return float(value) if is_number(value) else None


def _mean(values: Any) -> float | None:
    known = [value for value in values if is_number(value)] if isinstance(values, list) else []
    return statistics.fmean(known) if known else None


def _largest(usage: Any) -> float | None:
    """The share of the most used class at a step, over all steps."""
    return _mean([max(row) for row in usage if row]) if isinstance(usage, list) else None


def _exchange(final: Record) -> float | None:
    losses = [_mean(table_of(final, "exchanged", kind)) for kind in ("normal", "exchanged")]
    return None if None in losses else losses[1] - losses[0]  # type: ignore[operator]


def _last(records: Sequence[Record], *path: str) -> float | None:
    """A number by the last of the records that has it."""
    known = [value for record in records if is_number(value := table_of(record, *path))]
    return float(known[-1]) if known else None
