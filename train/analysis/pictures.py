"""The pictures of analysed checkpoints, one row for each."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from mom_jax.config import SIDES
from train.analysis.program import Analysed
from train.reporting.pictures import rendered

_NAMES = {"attention": "Attention", "ffn": "FFN"}
_TABLES = {"weights_NxN": "weights, cosine", "outputs_NxN": "outputs, CKA", "attention_patterns_NxN": "patterns"}
_PARTS = {"step": "#3b8fd1", "token": "#d9822b", "context": "#a08a1f"}
_COLOURS = {"attention": "#3b8fd1", "ffn": "#d9822b"}


def modules(analysed: Sequence[Analysed]) -> bytes:
    """The similarity of each pair of modules, PNG."""
    shown = [(side, table) for side in SIDES for table in _TABLES if table in analysed[0].record["similarity"][side]]

    def draw(figure: Figure, theme: str) -> None:
        panels = figure.subplots(len(analysed), len(shown), squeeze=False)
        for row, own in zip(panels, analysed, strict=True):
            for axes, (side, table) in zip(row, shown, strict=True):
                values = np.asarray(own.record["similarity"][side][table], float)
                image = _heat(axes, values, Normalize(-1, 1), "RdBu_r")
                axes.set(title=f"{_NAMES[side]}: {_TABLES[table]}", xlabel="module")
            row[0].set_ylabel(_label(own))
        figure.colorbar(image, ax=panels, label="1: alike", pad=0.01)

    return rendered(2.6 * len(shown) + 1, 2.8 * len(analysed), draw, "light", "white")


def routing(analysed: Sequence[Analysed]) -> bytes:
    """Usage by step, what the choices depend on, and the tokens' depth, PNG."""
    sides = [side for side in SIDES if any(side in own.record["usage"] for own in analysed)]

    def draw(figure: Figure, theme: str) -> None:
        panels = figure.subplots(len(analysed), len(sides) + 2, squeeze=False)
        for row, own in zip(panels, analysed, strict=True):
            for axes, side in zip(row, sides, strict=False):
                if side not in own.record["usage"]:
                    axes.set_axis_off()
                    continue
                table = 100 * np.asarray(own.record["usage"][side])
                _heat(axes, table, Normalize(0, 100), "Blues", numbers="{:.0f}")
                names = [*map(str, range(table.shape[1] - 1)), "null"]
                axes.set_xticks(range(table.shape[1]), names)
                axes.set(title=f"{_NAMES[side]}: share of choices, %", xlabel="module", ylabel="step")
            _dependence(row[-2], own)
            _depth(row[-1], own)
            row[0].set_ylabel(f"{_label(own)}\nstep")

    return rendered(3.0 * (len(sides) + 2), 3.0 * len(analysed), draw, "light", "white")


def _heat(axes: Axes, table: np.ndarray, norm: Normalize, colours: str, numbers: str = "{:.2f}") -> Any:
    image = axes.imshow(table, cmap=colours, norm=norm, aspect="auto")
    axes.grid(False)
    for places, axis in ((table.shape[1], axes.xaxis), (table.shape[0], axes.yaxis)):
        axis.set_ticks(range(0, places, 1 + (places - 1) // 16))
    if table.size <= 100:
        for y, row in enumerate(table):
            for x, value in enumerate(row):
                red, green, blue, _ = image.cmap(image.norm(value))
                ink = "black" if 0.3 * red + 0.6 * green + 0.1 * blue > 0.5 else "white"
                axes.text(x, y, numbers.format(value), ha="center", va="center", color=ink, fontsize=7)
    return image


def _dependence(axes: Axes, own: Analysed) -> None:
    found = own.found.dependence
    start = np.zeros(len(found))
    for part, colour in _PARTS.items():
        widths = np.nan_to_num([side.entropy * side.shares[part] for side in found.values()])
        axes.barh([_NAMES[side] for side in found], widths, left=start, color=colour, label=part)
        start = start + widths
    axes.set(title="What the choice depends on", xlabel="nats")
    axes.margins(y=0.35)
    axes.legend(loc="upper center", ncols=3, fontsize=7)


def _depth(axes: Axes, own: Analysed) -> None:
    shares = own.record["depth"]["histogram"]
    axes.bar(range(len(shares)), [100 * share for share in shares], color=_COLOURS["attention"])
    axes.set(title="Effective depth", xlabel="modules per token", ylabel="share of tokens, %")


def _label(own: Analysed) -> str:
    return own.name if len(own.name) <= 30 else f"...{own.name[-27:]}"
