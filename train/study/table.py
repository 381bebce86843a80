"""A study's tables (`table.md`) and pictures, from its results alone."""

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mom_jax.config import SIDES
from train.files import write_whole
from train.reporting.history import is_number
from train.reporting.tables import markdown, spread_of
from train.study.comparison import (
    Paired,
    Row,
    losses_by_seed,
    metric_by_seed,
    metrics_of,
    paired,
    rows,
    worth_of_choices,
)
from train.study.definition import Map
from train.study.plan import Plan
from train.study.records import locked, read_results
from train.study.speeds import read_measure

TABLE, PLOT, CURVES, MAPS = "table.md", "plot.png", "curves.png", "maps.png"

_NOTES = """\
loss: of the final evaluation, nats per token, mean ± standard deviation (n - 1) over the seeds. difference: to the
baseline, paired by seed, with its 95 % confidence interval (Student's t); `better` and `worse` where the interval lies
on one side of 0. active: parameters that a token is multiplied with, counted each time. MFLOPs/token: of the forward
pass, with the choices of the final evaluation (SKIP counts nothing, routers count). tokens: that the model was trained
on, the first phase included. tokens/s and memory: of the train step, measured side by side (`--measure`): the speed
over the baseline's, and the compiled step's peak on a device. exchanged: how much higher the loss is where each token
gets the choices of another one (docs/analysis.md).
"""
_ALIKE = """
similarity: of two modules' outputs for the same tokens, the mean over all pairs, from the first analysis to the last
(docs/analysis.md); 1 where they are alike. A vanilla model's are of its layers.
"""


def write_table(plan: Plan) -> str:
    """Writes `table.md` and the pictures; returns the text. Without results there are no pictures."""
    with locked(plan.folder):  # what is read, too: another process may be adding its results
        found = rows(read_results(plan.folder), plan.study.baselines)
        text = _text(plan, found, read_measure(plan.folder))
        write_whole(plan.folder / TABLE, text.encode())
        if found:
            from train.study import pictures  # and matplotlib, which nothing else needs

            write_whole(plan.folder / PLOT, pictures.losses(found))
            write_whole(plan.folder / CURVES, pictures.curves(found))
            if plan.study.maps:
                write_whole(plan.folder / MAPS, pictures.maps(found, plan.study.maps))
    return text


def against(plan: Plan, arm: str) -> str:
    """The table with differences of all arms to another one than their baselines; nothing is written. Without speeds,
    which were measured over the baselines'. Raises ConfigError where there is no such arm."""
    arms = tuple(dataclasses.replace(own, baseline="") for own in plan.study.arms)
    other = dataclasses.replace(plan, study=dataclasses.replace(plan.study, arms=arms, baseline=arm))
    return _text(other, rows(read_results(plan.folder), other.study.baselines), {})


def _text(plan: Plan, found: Sequence[Row], measured: Mapping[str, dict[str, Any]]) -> str:
    study = plan.study
    seeds = ", ".join(map(str, study.seeds_of(plan.size)))
    parts = [f"# {study.name}, {plan.size}\n", f"{study.question}\n"]
    if not found:
        return "\n".join([*parts, "No run is finished yet.\n"])
    tokens = {result["evaluated_tokens"] for row in found for result in row.results}
    held_out = " or ".join(f"{count:,}" for count in sorted(tokens))
    parts.append(f"Seeds {seeds}; losses over {held_out} held-out tokens; {_baselines(plan)}.\n")
    header = ["arm", "seeds", "loss", "difference", "95 % interval", "verdict", "parameters", "active", "MFLOPs/token"]
    header += ["tokens", *(["tokens/s", "speed", "memory, MB"] if measured else [])]
    parts.append(markdown(header, [_cells(row, measured) for row in found]))
    parts.append(_by_seed(found))
    parts += [_map(found, own) for own in study.maps]
    if any(r["routers"] for row in found for r in row.results):
        parts.append(_routers(found))
    # Another file of the study may have more to do after the same runs.
    tasks = dict.fromkeys(task for row in found for r in row.results for task in r.get("after", {}))
    parts += [_after(found, task) for task in tasks]
    alike = _similarity(found)
    notes = _NOTES + (_ALIKE if alike else "")
    return "\n".join([*(part for part in (*parts, alike) if part), notes])


def _baselines(plan: Plan) -> str:
    used = list(dict.fromkeys(plan.study.baselines.values()))
    if len(used) == 1:
        return f"baseline: {used[0]}"
    arms = (", ".join(repr(arm) for arm, base in plan.study.baselines.items() if base == own != arm) for own in used)
    return "baselines: " + "; ".join(f"{own!r} of {others}" for own, others in zip(used, arms, strict=True) if others)


def _cells(row: Row, measured: Mapping[str, dict[str, Any]]) -> list[str]:
    first, losses = row.results[0], row.losses
    cells = [
        row.arm,
        str(len(row.results)),
        spread_of(losses, 4),
        *_difference(row.difference, 4),
        row.verdict or "-",
        f"{first['parameters']:,}",
        f"{first['active_parameters']:,}",
        f"{_mean(row, lambda r: r['flops_per_token']) / 1e6:.3f}",
        f"{first['tokens']:,}",
    ]
    if measured:
        own = measured.get(row.arm)
        speed = (
            [f"{own['tokens_per_s']:,.0f}", f"{own['speed_ratio']:.2f}", f"{own['peak_bytes'] / 1e6:.1f}"]
            if own
            else []
        )
        cells += speed or ["-"] * 3
    return cells


def _map(found: Sequence[Row], own: Map) -> str:
    """Losses, what differs by row before its name."""
    losses = {row.arm: spread_of(row.losses, 4) for row in found}
    lines = [
        [f"{own.row}: {row}", *(losses.get(own.arms.get((row, column), ""), "-") for column in own.columns)]
        for row in own.rows
    ]
    return markdown([own.name, *(f"{own.column}: {column}" for column in own.columns)], lines)


def _routers(found: Sequence[Row]) -> str:
    """What the routers do, means over the seeds, attention / FFN; and what their choices are worth."""

    def pair(row: Row, key: str, form: str) -> str:
        def one(side: str) -> str:
            values = [r["routers"].get(side, {}).get(key) for r in row.results]
            known = [value for value in values if is_number(value)]
            return format(statistics.fmean(known), form) if known else "-"

        return f"{one('attention')} / {one('ffn')}"

    columns = (("off_diagonal", ".1%"), ("skip", ".1%"), ("taken", ".2f"), ("entropy", ".3f"), ("churn", ".1%"))
    header = [
        "attention / FFN",
        "off the diagonal",
        "SKIP",
        "modules per step",
        "entropy, nats",
        "churn",
        "exchanged, nats",
    ]
    lines = []
    for row in found:
        if any(r["routers"] for r in row.results):
            worth = [value for value in map(worth_of_choices, row.results) if value is not None]
            lines.append([row.arm, *(pair(row, key, form) for key, form in columns), spread_of(worth, 3)])
    return markdown(header, lines)


def _by_seed(found: Sequence[Row]) -> str:
    """Losses with their differences to the baseline's, seed by seed; nothing of a single seed."""
    losses = {row.arm: losses_by_seed(row.results) for row in found}
    seeds = sorted({seed for own in losses.values() for seed in own})
    if len(seeds) < 2:
        return ""

    def cell(row: Row, seed: int) -> str:
        own, base = losses[row.arm].get(seed), losses.get(row.baseline, {}).get(seed)
        if own is None:
            return "-"
        return f"{own:.4f}" if base is None or row.arm == row.baseline else f"{own:.4f} ({own - base:+.4f})"

    header = ["loss (difference) by seed", *map(str, seeds)]
    return markdown(header, [[row.arm, *(cell(row, seed) for seed in seeds)] for row in found])


def _similarity(found: Sequence[Row]) -> str:
    """How alike the modules' outputs are, at the first analysis and at the last, means over the seeds that have it."""

    def way(row: Row, side: str) -> str:
        curves = [r["similarity"][side] for r in row.results if r.get("similarity", {}).get(side)]
        if not curves:
            return "-"
        first, last = ([curve[i][1] for curve in curves] for i in (0, -1))
        return f"{statistics.fmean(first):.3f} to {statistics.fmean(last):.3f}"

    lines = [
        [row.arm, *(way(row, side) for side in SIDES)] for row in found if any(r.get("similarity") for r in row.results)
    ]
    return markdown(["similarity of modules' outputs", "attention", "FFN"], lines) if lines else ""


def _after(found: Sequence[Row], task: str) -> str:
    """The metrics of what was done after the runs, in %, higher being better."""
    names_of = {row.arm: [name for result in row.results for name in metrics_of(result, task)] for row in found}
    names = list(dict.fromkeys(name for own in names_of.values() for name in own))
    if not names:
        return ""
    by_arm = {row.arm: row.results for row in found}
    lines = []
    for row in (row for row in found if names_of[row.arm]):
        cells = [row.arm]
        for name in names:
            values = metric_by_seed(row.results, task, name)
            base = metric_by_seed(by_arm.get(row.baseline, ()), task, name)
            compared = None if row.arm == row.baseline else paired(values, base)
            verdict = compared.verdict(higher_is_better=True) if compared else ""
            cells += [spread_of(list(values.values()), 2), *_difference(compared, 2), verdict or "-"]
        lines.append(cells)
    header = [task, *(cell for name in names for cell in (name, "difference", "95 % interval", "verdict"))]
    return markdown(header, lines)


def _mean(row: Row, of: Callable[[Any], float]) -> float:
    return statistics.fmean(map(of, row.results))


def _difference(compared: Paired | None, digits: int) -> tuple[str, str]:
    if compared is None:
        return "-", "-"
    between = "-"
    if compared.interval is not None:
        low, high = compared.interval
        between = f"{low:+.{digits}f} to {high:+.{digits}f}"
    return f"{compared.mean:+.{digits}f}", between
