"""A study's pictures, as PNG."""

import statistics
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from train.reporting.pictures import COLOURS, THEMES, rendered
from train.study.comparison import Row, curve, curve_differences, interval
from train.study.definition import Map

_MARKS = "os^Dv<>Pd*"


def losses(found: Sequence[Row]) -> bytes:
    """Final losses, seed by seed with their mean, and differences to their baselines with the confidence intervals."""
    shown = list(reversed(found))

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
        right.set_xlabel(f"difference to {_compared(found)}, paired by seed, 95 % interval")

    return rendered(11, 1.2 + 0.32 * len(shown), draw, "light", background="white")


def curves(found: Sequence[Row]) -> bytes:
    """Validation losses over the steps of the arms' own phases, and differences to their baselines at the same step,
    paired by seed: means over the seeds, with the range between them."""
    results = {row.arm: row.results for row in found}

    def draw(figure: Figure, theme: str) -> None:
        left, right = figure.subplots(1, 2)
        for i, row in enumerate(found):
            look = {"color": COLOURS[i % len(COLOURS)], "marker": _MARKS[i // len(COLOURS) % len(_MARKS)]}
            _band(left, [curve(result) for result in row.results], label=row.arm, **look)
            if row.arm != row.baseline:
                _band(right, curve_differences(row.results, results.get(row.baseline, ())), **look)
        right.axhline(0, color=THEMES[theme]["ink"], linewidth=0.8)
        for axes in (left, right):
            axes.set_xlabel("training step, shared first phase not counted")
        left.set_ylabel("validation loss, nats per token")
        right.set_ylabel(f"difference to {_compared(found)}, paired by seed")
        left.legend(fontsize=8)

    return rendered(11, 5, draw, "light", background="white")


def _band(axes: Axes, seeds: Sequence[Mapping[int, float]], *, color: str, marker: str, label: str = "") -> None:
    """A line of means, and the range between the seeds."""
    steps = sorted({step for own in seeds for step in own})
    values = [[own[step] for own in seeds if step in own] for step in steps]
    axes.plot(steps, [statistics.fmean(v) for v in values], color=color, marker=marker, linewidth=1.2, label=label)
    if len(seeds) > 1:
        axes.fill_between(
            steps, [min(v) for v in values], [max(v) for v in values], color=color, alpha=0.12, linewidth=0
        )


def _compared(found: Sequence[Row]) -> str:
    """What the differences are to."""
    baselines = {row.baseline for row in found}
    return repr(baselines.pop()) if len(baselines) == 1 else "the arm's baseline"


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
