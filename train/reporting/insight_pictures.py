"""The pictures of what is inside: similarity of modules, what choices depend on, depth and churn."""

from collections.abc import Mapping
from typing import Any

from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from mom_jax.config import SIDES
from train.reporting.history import Record, Run
from train.reporting.pictures import COLOURS, SIDE_NAMES, STYLES, THEMES, marker, over_training, percent

Curve = tuple[list[int], list[float]]

_SIMILARITIES = {"weights": "weights, cosine", "outputs": "outputs, CKA", "attention_patterns": "attention patterns"}


def similarity(run: Run, curves: Mapping[tuple[Any, str], Curve], figure: Figure, theme: str) -> None:
    """A panel for each kind of similarity, a line for each side."""
    kinds = [kind for kind in _SIMILARITIES if any(curves[side, kind][0] for side in SIDES)]
    for axes, kind in zip(figure.subplots(1, len(kinds), squeeze=False)[0], kinds, strict=True):
        for side, colour, style in zip(SIDES, COLOURS, STYLES, strict=False):
            steps, values = curves[side, kind]
            if steps:
                axes.plot(steps, values, marker(steps, style), color=colour, label=SIDE_NAMES[side])
        over_training(run, axes, f"similarity of {_SIMILARITIES[kind]}")
        low = min(0.0, *(value for side in SIDES for value in curves[side, kind][1]))
        axes.set_ylim(low, 1.02)
        axes.legend()


def pairs(tables: Mapping[Any, list[list[Any]]], figure: Figure, theme: str) -> None:
    """Every two modules of a side."""
    for axes, (side, table) in zip(figure.subplots(1, len(tables), squeeze=False)[0], tables.items(), strict=True):
        values = [[percent(value, 1) for value in row] for row in table]
        image = axes.imshow(values, cmap=THEMES[theme]["map"], norm=Normalize(0, 1))
        axes.grid(False)
        axes.set(title=SIDE_NAMES[side], xlabel="module", ylabel="module")
        ticks = range(0, len(values), 1 + (len(values) - 1) // 16)
        axes.set_xticks(ticks)
        axes.set_yticks(ticks)
        if len(values) <= 8:
            for y, row in enumerate(values):
                for x, value in enumerate(row):
                    red, green, blue, _ = image.cmap(image.norm(value))
                    ink = "black" if 0.3 * red + 0.6 * green + 0.1 * blue > 0.5 else "white"
                    axes.text(x, y, f"{value:.2f}", ha="center", va="center", color=ink, fontsize=8)
    figure.colorbar(image, ax=figure.axes, label="similarity", pad=0.01)


def dependence(run: Run, curves: Mapping[Any, list[tuple[int, dict[str, float]]]], figure: Figure, theme: str) -> None:
    """A panel a side: the shares of the choice's entropy."""
    labels = {"step": "the step", "token": "the token", "context": "the context"}
    for axes, (side, points) in zip(figure.subplots(1, len(curves), squeeze=False)[0], curves.items(), strict=True):
        steps = [step for step, _ in points]
        for (name, label), colour, style in zip(labels.items(), COLOURS, ("-", "--", "-."), strict=False):
            shares = [percent(known[name]) for _, known in points]
            axes.plot(steps, shares, marker(steps, style), color=colour, label=label)
        over_training(run, axes, "share of the entropy, %")
        axes.set_title(SIDE_NAMES[side])
        axes.set_ylim(0, 102)
        axes.legend()


def depth(run: Run, found: list[tuple[str, Record]], churn: Mapping[Any, Curve], figure: Figure, theme: str) -> None:
    """The last histogram of depths, the mean depth over training, and churn, as far as they are known."""
    changes = any(steps for steps, _ in churn.values())
    panels = list(figure.subplots(1, 2 * bool(found) + changes, squeeze=False)[0])
    if found:
        shares = found[-1][1]["depth"]["histogram"]
        shown = [i for i, share in enumerate(shares) if share]
        low, high = (shown[0], shown[-1]) if shown else (0, 0)
        axes = panels.pop(0)
        axes.bar(range(low, high + 1), [percent(share) for share in shares[low : high + 1]], color=COLOURS[0])
        axes.set(xlabel="effective depth, modules", ylabel="tokens, %")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes = panels.pop(0)
        steps = [run.offsets[phase] + record["step"] for phase, record in found]
        mean, least, most = (
            [percent(record["depth"].get(key), 1) for _, record in found] for key in ("mean", "min", "max")
        )
        axes.fill_between(steps, least, most, color=COLOURS[0], alpha=0.2, linewidth=0, label="least to most")
        axes.plot(steps, mean, marker(steps), color=COLOURS[0], label="mean")
        over_training(run, axes, "effective depth, modules")
        axes.set_ylim(bottom=0)
        axes.legend()
    if changes:
        axes = panels.pop(0)
        for side, colour, style in zip(SIDES, COLOURS, STYLES, strict=False):
            steps, values = churn[side]
            if steps:
                shown_values = [percent(value) for value in values]
                axes.plot(steps, shown_values, marker(steps, style), color=colour, label=SIDE_NAMES[side])
        over_training(run, axes, "churn, % of best choices")
        axes.set_ylim(bottom=0)
        axes.legend()
