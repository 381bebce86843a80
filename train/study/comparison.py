"""Arms side by side: means over seeds, and differences to the baseline, paired by seed."""

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from scipy import stats

from train.reporting.history import is_number
from train.study.records import Result

CONFIDENCE = 0.95

Verdict = Literal["better", "worse", "not separated", "", "diverged"]


@dataclasses.dataclass(frozen=True)
class Paired:
    """Of the differences of one quantity to the baseline, seed by seed: their mean and its 95 % confidence interval by
    Student's t (None of one seed)."""

    mean: float
    interval: tuple[float, float] | None
    seeds: int

    def verdict(self, *, higher_is_better: bool) -> Verdict:
        """From the interval alone; none without one."""
        if self.interval is None:
            return ""
        low, high = (-self.interval[1], -self.interval[0]) if higher_is_better else self.interval
        return "better" if high < 0 else "worse" if low > 0 else "not separated"


@dataclasses.dataclass(frozen=True)
class Row:
    """An arm's results, one for each of its seeds, and the loss's difference to its baseline (None for itself)."""

    arm: str
    baseline: str
    results: tuple[Result, ...]
    difference: Paired | None

    @property
    def losses(self) -> list[float]:
        return [r["loss"] for r in self.results if is_number(r["loss"])]

    @property
    def verdict(self) -> Verdict:
        if len(self.losses) < len(self.results):
            return "diverged"
        return self.difference.verdict(higher_is_better=False) if self.difference else ""


def rows(results: Sequence[Result], baselines: Mapping[str, str]) -> list[Row]:
    """A row for each arm that has results, in the order of `baselines`: by arm the one that it is compared with."""
    own = {arm: tuple(sorted((r for r in results if r["arm"] == arm), key=lambda r: r["seed"])) for arm in baselines}
    losses = {arm: losses_by_seed(found) for arm, found in own.items()}
    return [
        Row(arm, baseline, own[arm], None if arm == baseline else paired(losses[arm], losses[baseline]))
        for arm, baseline in baselines.items()
        if own[arm]
    ]


def losses_by_seed(results: Sequence[Result]) -> dict[int, float]:
    """Final losses, those that are numbers."""
    return {r["seed"]: r["loss"] for r in results if is_number(r["loss"])}


def metrics_of(result: Result, task: str) -> Mapping[str, Any]:
    """Of what was done after a run; empty where it was not done."""
    return result.get("after", {}).get(task, {}).get("metrics", {})


def metric_by_seed(results: Sequence[Result], task: str, metric: str) -> dict[int, float]:
    """One metric of what was done after the runs."""
    found: dict[int, Any] = {result["seed"]: metrics_of(result, task).get(metric) for result in results}
    return {seed: value for seed, value in found.items() if is_number(value)}


def worth_of_choices(result: Result) -> float | None:
    """How much higher the final loss is where each token gets another one's choices, nats per token (the exchange test,
    docs/analysis.md); None where it was not made or is no number."""
    made = result.get("exchanged") or {}
    normal, exchanged = (made.get(name, ()) for name in ("normal", "exchanged"))
    if not normal or not exchanged or not all(map(is_number, (*normal, *exchanged))):
        return None
    return statistics.fmean(exchanged) - statistics.fmean(normal)


def paired(values: Mapping[int, float], base: Mapping[int, float]) -> Paired | None:
    """Over the seeds that both have; None where there are none."""
    seeds = sorted(values.keys() & base.keys())
    differences = [values[seed] - base[seed] for seed in seeds]
    if not seeds:
        return None
    mean = statistics.fmean(differences)
    if len(seeds) == 1:
        return Paired(mean, None, 1)
    return Paired(mean, interval(differences), len(seeds))


def curve(result: Result) -> dict[int, float]:
    """Validation losses by step, those that are numbers."""
    return {step: loss for step, loss in result["curve"] if is_number(loss)}


def curve_differences(results: Sequence[Result], base: Sequence[Result]) -> list[dict[int, float]]:
    """Of validation losses to `base`'s of the same seed, at the steps that both have; for each seed of both."""
    known = {result["seed"]: curve(result) for result in base}
    pairs = [(curve(result), known[result["seed"]]) for result in results if result["seed"] in known]
    return [{step: own[step] - other[step] for step in own if step in other} for own, other in pairs]


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % confidence interval of the mean of two values or more, by Student's t."""
    mean, error = statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values))
    if error == 0:
        return mean, mean
    low, high = stats.t.interval(CONFIDENCE, len(values) - 1, loc=mean, scale=error)
    return float(low), float(high)
