"""A study's pictures, as PNG."""

import statistics
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from train.reporting.history import is_number
from train.reporting.pictures import COLOURS, THEMES, rendered
from train.study.comparison import Row, interval
from train.study.definition import Map

_MARKS = "os^Dv<>Pd*"


def losses(found: Sequence[Row]) -> bytes:
    """Final losses, seed by seed with their mean, and differences to their baselines with the confidence intervals."""
    shown = list(reversed(found))
    baselines = {row.baseline for row in found}
    which = repr(baselines.pop()) if len(baselines) == 1 else "the arm's baseline"

    def draw(figure: Figure, theme: str) -> None:
        ink = THEMES[theme]["ink"]
        left, right = figure.subplots(1, 2, sharey=True)
        for y, row in enumerate(shown):
            left.plot(row.losses, [y] * len(row.losses), "o", color=COLOURS[0], alpha=0.7)
            if row.losses:
                half = 0.0
                if len(row.losses) > 1:
                    low, high = interval(row.losses)
                    half = (high - low) / 2
                left.errorbar(statistics.fmean(row.losses), y, xerr=half, fmt="|", color=ink, capsize=3, markersize=14)
            if row.difference is not None:
                between = row.difference.interval
                half = 0.0 if between is None else (between[1] - between[0]) / 2
                right.errorbar(row.difference.mean, y, xerr=half, fmt="o", color=COLOURS[1], capsize=3)
        left.set_yticks(range(len(shown)), [row.arm for row in shown])
        left.set_ylim(-0.5, len(shown) - 0.5)
        left.set_xlabel("loss, nats per token: seeds, mean, 95 % interval")
        right.axvline(0, color=ink, linewidth=0.8)
        right.set_xlabel(f"difference to {which}, paired by seed, 95 % interval")

    return rendered(11, 1.2 + 0.32 * len(shown), draw, "light", background="white")


def curves(found: Sequence[Row]) -> bytes:
    """Validation losses over the steps of the arms' own phases: means over the seeds, with the range between them."""

    def draw(figure: Figure, theme: str) -> None:
        axes = figure.add_subplot()
        for i, row in enumerate(found):
            by_step: dict[int, list[float]] = {}
            for result in row.results:
                for step, loss in result["curve"]:
                    if is_number(loss):
                        by_step.setdefault(step, []).append(loss)
            steps = sorted(by_step)
            means = [statistics.fmean(by_step[step]) for step in steps]
            colour, mark = COLOURS[i % len(COLOURS)], _MARKS[i // len(COLOURS) % len(_MARKS)]
            axes.plot(steps, means, marker=mark, color=colour, linewidth=1.2, label=row.arm)
            if len(row.results) > 1 and steps:
                low, high = (np.array([f(by_step[step]) for step in steps]) for f in (min, max))
                axes.fill_between(steps, low, high, color=colour, alpha=0.12, linewidth=0)
        axes.set_xlabel("training step, shared first phase not counted")
        axes.set_ylabel("validation loss, nats per token")
        axes.legend(fontsize=8)

    return rendered(9, 5, draw, "light", background="white")


def maps(found: Sequence[Row], drawn: Sequence[Map]) -> bytes:
    """Each map's mean losses, on one scale of colours."""
    means = {row.arm: statistics.fmean(row.losses) for row in found if row.losses}
    tables = [[[means.get(m.arms.get((r, c), ""), np.nan) for c in m.columns] for r in m.rows] for m in drawn]
    values = np.concatenate([np.ravel(table) for table in tables])
    low, high = (np.nanmin(values), np.nanmax(values)) if np.isfinite(values).any() else (0.0, 1.0)

    def draw(figure: Figure, theme: str) -> None:
        for axes, own, table in zip(
            np.ravel(figure.subplots(1, len(drawn), squeeze=False)), drawn, tables, strict=True
        ):
            axes.imshow(table, cmap="viridis_r", vmin=low, vmax=high, aspect="auto")
            for (y, x), loss in np.ndenumerate(table):
                light = loss > (low + high) / 2  # dark colours stand for high losses
                if np.isfinite(loss):
                    axes.text(x, y, f"{loss:.4f}", ha="center", va="center", color="white" if light else "black")
            axes.grid(visible=False)
            axes.set_xticks(range(len(own.columns)), own.columns)
            axes.set_yticks(range(len(own.rows)), own.rows)
            axes.set_xlabel(own.column)
            axes.set_ylabel(own.row)
            axes.set_title(f"{own.name}: loss, nats per token")

    tallest = max(len(own.rows) for own in drawn)
    return rendered(1 + 4.5 * len(drawn), 1.5 + 0.6 * tallest, draw, "light", background="white")
