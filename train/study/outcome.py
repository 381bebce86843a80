"""What a finished run says: the line that the study keeps of it."""

import dataclasses
import statistics
from pathlib import Path
from typing import Any

from mom_jax.analysis.cost import forward_flops_per_token, parameter_count
from mom_jax.fields import ConfigError
from train.checkpoints.locate import FOLDER, Found, last_step
from train.checkpoints.run_config import read_config
from train.config import Config
from train.reporting import metrics
from train.reporting.history import Record, is_number
from train.study.plan import Run, fingerprint

_TAKEN = {"attention": "attn_taken", "ffn": "ffn_taken"}
_SUMMARY = ("off_diagonal", "skip", "taken", "dropped")


def final_record(config: Config) -> Record | None:
    """The last word of a run's last phase; None where it is not finished."""
    file = Path(config.run) / metrics.FILE
    name = config.phases[-1].name
    records = metrics.read(file) if file.exists() else []
    final = next((r for r in records if r.get("kind") == "final" and r.get("phase") == name), None)
    if final is not None and not {"loss", "tokens"} <= final.keys():
        raise ConfigError(f"{file}: the final record of {name} has no loss; delete the run's folder to train it again")
    return final


def steps_done(config: Config) -> int:
    """The steps of all phases that the log of a run has."""
    file = Path(config.run) / metrics.FILE
    return sum(r.get("kind") == "train" for r in metrics.read(file)) if file.exists() else 0


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a run has come to.

    config: the run's, with the data's vocabulary. final: the final evaluation (`loss`, `tokens`, `routers` where there
    are some). curve: [step, loss] of the validations, steps of the run's own phases. seconds: of the own steps. churn:
    by side, of the last analysis. first_loss: the first phase's, where that is shared. similarity: by side, [step, the
    mean similarity of two modules' outputs] of the analyses (docs/analysis.md), steps as the curve has them.
    """

    config: Config
    final: Record
    curve: list[list[Any]]
    seconds: float | None
    churn: dict[str, float | None]
    first_loss: float | None
    similarity: dict[str, list[list[Any]]] = dataclasses.field(default_factory=dict)


def result_of(run: Run, whole: Config, root: Path) -> dict[str, Any]:
    """The result of a finished run. whole: the arm's configuration, with the first phase.

    seconds: a step that was not timed is taken for a median one; evaluations and compiling are not in it.
    """
    final = final_record(run.config)
    assert final is not None
    _check_log(run)
    records = metrics.read(run.folder / metrics.FILE)
    name = run.config.phases[-1].name
    # A vanilla model's analysis has none.
    analyses = [r.get("churn", {}) for r in records if r.get("kind") == "analysis" and r["phase"] == name]
    outcome = Outcome(
        read_config(run.folder, "run"),
        final,
        _curve(run.config, records),
        _seconds(records),
        analyses[-1] if analyses else {},
        None if run.start is None else _final_loss(run.start),
        _similarity(run.config, records),
    )
    return line(run, whole, root, outcome)


def _check_log(run: Run) -> None:
    """Raises ConfigError where a run's log is not what it was when its last checkpoint was saved."""
    folder = run.folder / FOLDER / run.config.phases[-1].name
    step = last_step(folder)
    if step is not None and not Found(run.folder, folder, step).meta().log.fits(run.folder / metrics.FILE):
        why = f"has changed since step {step} was saved; delete the run's folder to train it again"
        raise ConfigError(f"{run.folder / metrics.FILE}: {why}")


def line(run: Run, whole: Config, root: Path, outcome: Outcome) -> dict[str, Any]:
    """The line that the study keeps of a run.

    loss: of the final evaluation, nats per token; null where it is no number. flops_per_token: of the forward pass,
    choices counted as the final evaluation made them, routers included. tokens: of all phases; own_tokens: without a
    shared first one. entropy: the mean over the steps.
    """
    final, last = outcome.final, run.config.phases[-1]
    model, data = outcome.config.model_of(last.name), outcome.config.data
    routers = final.get("routers", {})
    taken = {_TAKEN[side]: summary["taken"] for side, summary in routers.items()}
    counted, per_step = parameter_count(model), data.batch_size * data.length
    first = [] if run.start is None else [(run.start, outcome.first_loss)]
    steps = sum(phase.steps for phase in run.config.phases)
    before = 0 if run.start is None else run.start.phases[0].steps
    return {
        "arm": run.arm,
        "seed": run.seed,
        "fingerprint": fingerprint(whole),
        "loss": final["loss"],
        "evaluated_tokens": final["tokens"],
        "curve": outcome.curve,
        "parameters": counted.total,
        "active_parameters": counted.active,
        "flops_per_token": forward_flops_per_token(model, data.length, **taken),
        "steps": steps,
        "tokens": (before + steps) * per_step,
        "own_tokens": steps * per_step,
        "seconds": outcome.seconds,
        "routers": {side: _routers(summary, outcome.churn.get(side)) for side, summary in routers.items()},
        **({"exchanged": final["exchanged"]} if "exchanged" in final else {}),
        **({"similarity": outcome.similarity} if outcome.similarity else {}),
        "first_phase": [{"run": str(Path(c.run).relative_to(root)), "loss": loss} for c, loss in first],
        "run": str(run.folder.relative_to(root)),
        "after": {},
    }


def _final_loss(config: Config) -> float | None:
    final = final_record(config)
    return None if final is None else final["loss"]


def _curve(config: Config, records: list[Record]) -> list[list[Any]]:
    offsets = config.offsets
    return [[offsets[r["phase"]] + r["step"], r["loss"]] for r in records if r.get("kind") == "validation"]


def _similarity(config: Config, records: list[Record]) -> dict[str, list[list[Any]]]:
    offsets, curves = config.offsets, dict[str, list[list[Any]]]()
    for record in records:
        if record.get("kind") == "analysis":
            for side, found in record.get("similarity", {}).items():
                if is_number(found["outputs"]):
                    step = offsets[record["phase"]] + record["step"]
                    curves.setdefault(side, []).append([step, found["outputs"]])
    return curves


def _seconds(records: list[Record]) -> float | None:
    given = [r.get("seconds") for r in records if r.get("kind") == "train"]
    known = [float(value) for value in given if value is not None]
    return sum(known) + (len(given) - len(known)) * statistics.median(known) if known else None


def _routers(summary: Record, churn: float | None) -> dict[str, Any]:
    """Of one side."""
    return {
        "entropy": _mean(summary["entropy"]),
        **{name: summary[name] for name in _SUMMARY},
        "churn": churn,
    }


def _mean(values: list[Any]) -> float | None:
    """None where one is no number, as in a model that has diverged."""
    return statistics.fmean(values) if values and all(map(is_number, values)) else None
