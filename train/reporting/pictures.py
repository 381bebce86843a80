"""The pictures of a report: each is drawn by a function of an empty figure and a theme, light or dark."""

import base64
import html
import io
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure

from mom_jax.config import SIDES
from train.reporting.history import Record, Run, is_number, router_value, smooth

Draw = Callable[[Figure, str], None]

# Ink, faint lines, colours of heat maps, and the part of viridis that can be seen on the (transparent) background.
THEMES: dict[str, dict[str, Any]] = {
    "light": {"ink": "#24292f", "faint": "#d5dae0", "map": "Blues", "lines": (0.0, 0.85)},
    "dark": {"ink": "#d7dde4", "faint": "#3b434d", "map": "Blues_r", "lines": (0.3, 1.0)},
}
# Readable on both backgrounds and told apart by the colour-blind (Okabe and Ito's palette).
COLOURS = ("#3b8fd1", "#d9822b", "#2a9d76", "#c2679f", "#a08a1f", "#7a6fd0")
SIDE_NAMES = {"attention": "Attention", "ffn": "FFN"}
STYLES = ("-", "--")  # of the two sides' lines

_STEPS_LABEL = "training step, all phases"


def rendered(width: float, height: float, draw: Draw, theme: str, background: str = "none") -> bytes:
    """A picture as PNG; sizes in inches."""
    look = THEMES[theme]
    ink, faint = look["ink"], look["faint"]
    style: Any = {
        "text.color": ink, "axes.labelcolor": ink, "xtick.color": ink, "ytick.color": ink, "axes.edgecolor": faint,
        "grid.color": faint, "axes.facecolor": "none", "figure.facecolor": background, "axes.grid": True,
        "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 10, "font.size": 9,
        "grid.linewidth": 0.5, "legend.frameon": False, "axes.axisbelow": True, "lines.markersize": 3,
    }  # fmt: skip
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(width, height), dpi=130, layout="constrained")
        draw(figure, theme)
        buffer = io.BytesIO()
        FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()


def embedded(width: float, height: float, draw: Draw, caption: str) -> str:
    """A picture for both themes as HTML; sizes in inches."""
    data = {
        theme: "data:image/png;base64," + base64.b64encode(rendered(width, height, draw, theme)).decode()
        for theme in THEMES
    }
    text = html.escape(caption)
    return (
        f'<figure><picture><source media="(prefers-color-scheme: dark)" srcset="{data["dark"]}">'
        f'<img src="{data["light"]}" alt="{text}"></picture><figcaption>{text}</figcaption></figure>'
    )


def over_training(run: Run, axes: Axes, label: str, *, names: bool = False) -> None:
    """Axes over all phases: their boundaries and, where asked for, their names."""
    for i, phase in enumerate(run.phases):
        if i:
            axes.axvline(run.offsets[phase], color=axes.yaxis.label.get_color(), linewidth=0.8, linestyle=(0, (4, 4)))
        if names:
            where = (run.offsets[phase], 1.0)
            above = axes.get_xaxis_transform()
            axes.annotate(phase, where, (4, 2), xycoords=above, textcoords="offset points", parse_math=False)
    axes.set(xlabel=_STEPS_LABEL, ylabel=label)
    axes.set_xlim(left=0)


def marker(points: Sequence[object], style: str = "-") -> str:
    """The style of a line: a single point would be none."""
    return f"o{style}" if len(points) < 2 else style


def losses(run: Run, figure: Figure, theme: str) -> None:
    axes = figure.add_subplot()
    for i, phase in enumerate(run.phases):
        colour = COLOURS[i % len(COLOURS)]
        steps, losses = run.series(phase, "loss")
        axes.plot(steps, losses, color=colour, alpha=0.3, linewidth=0.7)
        axes.plot(steps, smooth(losses), marker(steps), color=colour, linewidth=1.6)
        held = run.series(phase, "loss", "validation")
        axes.plot(*held, "o", markersize=5, markerfacecolor=colour, markeredgecolor=THEMES[theme]["ink"])
    over_training(run, axes, "loss, nats per token", names=True)


def rates(run: Run, figure: Figure, theme: str) -> None:
    rate, norm = figure.subplots(1, 2)
    for i, phase in enumerate(run.phases):
        colour = COLOURS[i % len(COLOURS)]
        steps, values = run.series(phase, "learning_rate")
        rate.plot(steps, values, marker(steps), color=colour, linewidth=1.4)
        steps, norms = run.series(phase, "grad_norm")
        norm.plot(steps, norms, color=colour, alpha=0.3, linewidth=0.7)
        norm.plot(steps, smooth(norms), marker(steps), color=colour, linewidth=1.4)
        if any(value > 0 for value in norms):
            norm.set_yscale("log")
    rate.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    over_training(run, rate, "learning rate, per step")
    over_training(run, norm, "gradient norm, L2")


def heat_maps(run: Run, usage: Mapping[Any, Any], figure: Figure, theme: str) -> None:
    shown = [side for side in SIDES if usage[side]]
    widths = [len(usage[side][0]) for side in shown]
    for axes, side in zip(figure.subplots(1, len(shown), squeeze=False, width_ratios=widths)[0], shown, strict=True):
        table = [[percent(v) for v in row] for row in usage[side]]
        image = axes.imshow(table, cmap=THEMES[theme]["map"], norm=Normalize(0, 100), aspect="auto")
        names = _class_names(run, side, len(table[0]))
        axes.grid(False)
        axes.set_title(SIDE_NAMES[side])
        every = 1 + (len(names) - 1) // 16
        shown_names = [i for i in range(len(names)) if i % every == 0 or not names[i].isdigit()]
        axes.set_xticks(shown_names, [names[i] for i in shown_names])
        axes.set_yticks(range(0, len(table), 1 + (len(table) - 1) // 16))
        axes.set_xlabel("module")
        axes.set_ylabel("assembly step, all chunks")
        if len(names) <= 10:
            for y, row in enumerate(table):
                for x, value in enumerate(row):
                    red, green, blue, _ = image.cmap(image.norm(value))
                    ink = "black" if 0.3 * red + 0.6 * green + 0.1 * blue > 0.5 else "white"
                    axes.text(x, y, f"{value:.0f}", ha="center", va="center", color=ink, fontsize=8)
    figure.colorbar(image, ax=figure.axes, label="share of choices, %", pad=0.01)


def _class_names(run: Run, side: str, classes: int) -> list[str]:
    """Modules by number; classes without a module are `null`; the last one is SKIP where the model has it."""
    if run.config is None:
        return [str(i) for i in range(classes)]
    model = run.config.model
    modules = model.num_attn_modules if side == "attention" else model.num_ffn_modules
    names = [str(i) if i < modules else "null" for i in range(classes)]
    return [*names[:-1], "SKIP"] if model.skip else names


def can_skip(run: Run) -> bool:
    """Whether tokens may choose SKIP; where the configuration is not known, they may."""
    return run.config is None or run.config.model.skip


def router_curves(run: Run, phase: str, routed: list[Record], figure: Figure, theme: str) -> None:
    def known(side: str, key: str) -> tuple[list[int], list[Any]]:
        found = [(run.offsets[phase] + r["step"], router_value(r, side, key)) for r in routed]
        found = [(step, value) for step, value in found if value is not None and value != []]
        return [step for step, _ in found], [value for _, value in found]

    entropy = {side: known(side, "entropy") for side in SIDES}
    skip = {side: known(side, "skip") if can_skip(run) else ([], []) for side in SIDES}
    shown = [side for side in SIDES if entropy[side][0]]
    panels = list(figure.subplots(1, len(shown) + any(steps for steps, _ in skip.values()), squeeze=False)[0])
    count = max((len(row) for _, rows in entropy.values() for row in rows), default=1)
    first, last = THEMES[theme]["lines"]
    shades = matplotlib.colormaps["viridis"](np.linspace(first, last, 64))
    colours = ScalarMappable(Normalize(0, max(count - 1, 1)), ListedColormap(shades))
    lines = colours.to_rgba(np.arange(count))
    for axes, side in zip(panels, shown, strict=False):
        steps, rows = entropy[side]
        for h, values in enumerate(zip(*rows, strict=False)):
            axes.plot(steps, [percent(v, 1) for v in values], marker(steps), color=lines[h], linewidth=1)
        axes.set(title=SIDE_NAMES[side], xlabel=_STEPS_LABEL, ylabel="router entropy, nats")
        axes.set_ylim(bottom=0)
    if shown:
        figure.colorbar(colours, ax=panels[: len(shown)], label="assembly step, all chunks", pad=0.01)
    if len(panels) > len(shown):
        axes = panels[-1]
        for side, colour, style in zip(SIDES, COLOURS, STYLES, strict=False):
            steps, shares = skip[side]
            axes.plot(steps, [percent(v) for v in shares], color=colour, linestyle=style, label=SIDE_NAMES[side])
        axes.set(title="SKIP", xlabel=_STEPS_LABEL, ylabel="share of choices, %", ylim=(0, 100))
        axes.legend()


def exchange(normal: list[float], exchanged: list[float], figure: Figure, theme: str) -> None:
    axes = figure.add_subplot()
    for y, values, colour in ((1, normal, COLOURS[0]), (0, exchanged, COLOURS[1])):
        axes.plot(values, [y] * len(values), "o", color=colour, markersize=8, alpha=0.8)
        axes.plot([statistics.fmean(values)], [y], "|", color=THEMES[theme]["ink"], markersize=26)
    axes.set_yticks([1, 0], ["normal", "exchanged"])
    axes.set_ylim(-0.6, 1.6)
    axes.set_xlabel("loss, nats per token (circle: a seed; bar: mean)")


def percent(value: Any, whole: float = 100) -> float:
    """`value` of `whole`, NaN where it is unknown: a gap in the picture."""
    return whole * value if is_number(value) else math.nan
