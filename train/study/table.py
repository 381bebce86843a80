"""A study's tables (`table.md`) and pictures, from its results alone."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from train.files import write_whole
from train.reporting.history import is_number
from train.reporting.tables import markdown
from train.study.comparison import Paired, Row, metric_by_seed, paired, rows
from train.study.plan import Plan
from train.study.records import locked, read_results
from train.study.speeds import read_measure

TABLE, PLOT, CURVES = "table.md", "plot.png", "curves.png"

_NOTES = """\
loss: of the final evaluation, nats per token, mean ± standard deviation (n - 1) over the seeds. difference: to the
baseline, paired by seed, with its 95 % confidence interval (Student's t); `better` and `worse` where the interval lies
on one side of 0. active: parameters that a token is multiplied with, counted each time. MFLOPs/token: of the forward
pass, with the choices of the final evaluation (SKIP counts nothing, routers count). tokens: that the model was trained
on, the first phase included. tokens/s and memory: of the train step, measured side by side (`--measure`): the speed
over the baseline's, and the compiled step's peak on a device.
"""


def write_table(plan: Plan) -> str:
    """Writes `table.md` and the two pictures; returns the text. Without results there are no pictures."""
    results = read_results(plan.folder)
    found = rows(results, plan.study.baselines)
    text = _text(plan, found, read_measure(plan.folder))
    with locked(plan.folder):
        write_whole(plan.folder / TABLE, text.encode())
        if found:
            from train.study import pictures  # and matplotlib, which nothing else needs

            write_whole(plan.folder / PLOT, pictures.losses(found))
            write_whole(plan.folder / CURVES, pictures.curves(found))
    return text


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
    if any(r["routers"] for row in found for r in row.results):
        parts.append(_routers(found))
    # Another file of the study may have more to do after the same runs.
    tasks = dict.fromkeys(task for row in found for r in row.results for task in r.get("after", {}))
    parts += [_after(found, task) for task in tasks]
    return "\n".join([*(part for part in parts if part), _NOTES])


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
        _spread(losses, 4),
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


def _routers(found: Sequence[Row]) -> str:
    """What the routers do, means over the seeds, attention / FFN."""

    def pair(row: Row, key: str, form: str) -> str:
        def one(side: str) -> str:
            values = [r["routers"].get(side, {}).get(key) for r in row.results]
            known = [value for value in values if is_number(value)]
            return format(statistics.fmean(known), form) if known else "-"

        return f"{one('attention')} / {one('ffn')}"

    columns = (("off_diagonal", ".1%"), ("skip", ".1%"), ("taken", ".2f"), ("entropy", ".3f"), ("churn", ".1%"))
    header = ["attention / FFN", "off the diagonal", "SKIP", "modules per step", "entropy, nats", "churn"]
    lines = [
        [row.arm, *(pair(row, key, form) for key, form in columns)]
        for row in found
        if any(r["routers"] for r in row.results)
    ]
    return markdown(header, lines)


def _after(found: Sequence[Row], task: str) -> str:
    """The metrics of what was done after the runs, in %, higher being better."""
    tasks = [r.get("after", {}).get(task, {}).get("metrics", {}) for row in found for r in row.results]
    names = list(dict.fromkeys(name for metrics in tasks for name in metrics))
    if not names:
        return ""
    by_arm = {row.arm: row.results for row in found}
    lines = []
    for row in found:
        cells = [row.arm]
        for name in names:
            values = metric_by_seed(row.results, task, name)
            base = metric_by_seed(by_arm.get(row.baseline, ()), task, name)
            compared = None if row.arm == row.baseline else paired(values, base)
            verdict = compared.verdict(higher_is_better=True) if compared else ""
            cells += [_spread(list(values.values()), 2), *_difference(compared, 2), verdict or "-"]
        lines.append(cells)
    header = [task, *(cell for name in names for cell in (name, "difference", "95 % interval", "verdict"))]
    return markdown(header, lines)


def _mean(row: Row, of: Callable[[Any], float]) -> float:
    return statistics.fmean(map(of, row.results))


def _spread(values: Sequence[float], digits: int) -> str:
    if not values:
        return "-"
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{deviation}"


def _difference(compared: Paired | None, digits: int) -> tuple[str, str]:
    if compared is None:
        return "-", "-"
    between = "-"
    if compared.interval is not None:
        low, high = compared.interval
        between = f"{low:+.{digits}f} to {high:+.{digits}f}"
    return f"{compared.mean:+.{digits}f}", between
