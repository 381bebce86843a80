"""What a study has to do: its runs, and how long they may take."""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from train.config import Config
from train.reporting.history import is_number
from train.reporting.tables import markdown
from train.study.outcome import final_record, steps_done
from train.study.plan import Plan, Run
from train.study.records import Result, found_elsewhere, read_results
from train.study.running import missing
from train.study.speeds import read_measure


def listing(plan: Plan, runs: Sequence[Run]) -> str:
    """The runs as a table, the first phases among them, with a sentence about all. Nothing is trained or written."""
    results = read_results(plan.folder)
    speeds = _speeds(plan, results)
    # A first phase is the vanilla model's, which is what a study compares with.
    usual = speeds.get(plan.study.baseline, statistics.fmean(speeds.values()) if speeds else math.nan)

    def hours(name: str, config: Config, done: int = 0) -> float:
        """Of the steps that are left after so many; not a number where no speed is known."""
        tokens = (_steps(config) - done) * config.data.batch_size * config.data.length
        return tokens / speeds.get(name, usual) / 3600

    states = [_state(plan, run, results) for run in runs]
    starts = {run.start.run: run.start for run in runs if run.start is not None}
    whole = sum(hours(run.arm, run.config) for run in runs) + sum(hours("", start) for start in starts.values())
    # A first phase is only trained for runs that are.
    needing = [run for run, (_, to_train) in zip(runs, states, strict=True) if to_train]
    needed = {run.start.run for run in needing if run.start is not None}
    work: list[tuple[str, str, Config, str, bool]] = []
    for start in (start for start in starts.values() if start.run in needed):
        there = final_record(start) is not None
        work.append((Path(start.run).name, str(start.seed), start, "finished" if there else _begun(start), not there))
    work += [(run.arm, str(run.seed), run.config, *state) for run, state in zip(runs, states, strict=True)]
    lines, left, rest = [], 0, 0.0
    for name, seed, config, state, to_train in work:
        steps, estimate = _steps(config), hours(name, config)
        tokens = steps * config.data.batch_size * config.data.length
        lines.append(
            [name, seed, f"{steps:,}", f"{tokens:,}", "-" if math.isnan(estimate) else f"{estimate:.2f}", state]
        )
        if to_train:
            left += 1
            rest += hours(name, config, steps_done(config))
    table = markdown(["run", "seed", "steps", "tokens", "hours", "state"], lines)
    counted = "hours of training steps, compiling and evaluations not counted"
    if not left:
        again = "" if math.isnan(whole) else f" From nothing they would take about {whole:.2f} {counted}."
        return f"{table}\nAll runs are finished.{again}"
    known = not math.isnan(whole)
    unknown = "how long they take is not known before `--measure` or a finished run"
    about = f"about {rest:.2f} of {whole:.2f} {counted}" if known else unknown
    return f"{table}\n{left} of {len(work)} runs to train: {about}."


def _steps(config: Config) -> int:
    return sum(phase.steps for phase in config.phases)


def _state(plan: Plan, run: Run, results: Sequence[Result]) -> tuple[str, bool]:
    """A word on how far a run is, and whether any of it is still to be trained."""
    lacking = missing(plan, run, results)
    if lacking is not None:
        return f"lacks {', '.join(lacking)}" if lacking else "finished", False
    same = found_elsewhere(plan, run)
    return (_begun(run.config), True) if same is None else (f"in {Path(same['run']).parts[0]}", False)


def _begun(config: Config) -> str:
    steps = steps_done(config)
    return f"at step {steps}" if steps else "to do"


def _speeds(plan: Plan, results: Sequence[Result]) -> dict[str, float]:
    """Tokens per second by arm: as measured, which is side by side, else of finished runs, on whatever trained them and
    beside whatever it did meanwhile."""
    measured = {name: float(own["tokens_per_s"]) for name, own in read_measure(plan.folder).items()}
    finished: dict[str, list[float]] = {}
    for result in results:
        if is_number(result.get("seconds")) and result["seconds"] > 0:
            finished.setdefault(result["arm"], []).append(result["own_tokens"] / result["seconds"])
    return {name: statistics.fmean(values) for name, values in finished.items()} | measured
