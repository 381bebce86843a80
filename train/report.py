"""The report of a run, one self-contained page: `python -m train.report RUN` writes `RUN/report.html`.

Pictures are embedded, each once for light and once for dark screens; nothing is loaded from elsewhere.
"""

import argparse
import base64
import html
import io
import itertools
import json
import math
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure

from mom_jax.analysis.cost import parameter_count
from mom_jax.fields import ConfigError, from_dict
from train.config import Config
from train.metrics import FILE, read

Record = dict[str, Any]
Draw = Callable[[Figure, str], None]

# Ink, faint lines, colours of heat maps, and the part of viridis that can be seen on the (transparent) background.
_THEMES: dict[str, dict[str, Any]] = {
    "light": {"ink": "#24292f", "faint": "#d5dae0", "map": "Blues", "lines": (0.0, 0.85)},
    "dark": {"ink": "#d7dde4", "faint": "#3b434d", "map": "Blues_r", "lines": (0.3, 1.0)},
}
# Readable on both backgrounds and told apart by the colour-blind (Okabe and Ito's palette).
_COLOURS = ("#3b8fd1", "#d9822b", "#2a9d76", "#c2679f", "#a08a1f", "#7a6fd0")
_SIDES = ("attention", "ffn")
_SIDE_NAMES = {"attention": "Attention", "ffn": "FFN"}

_STEPS_LABEL = "training step, all phases"

_STYLE = """
:root { color-scheme: light dark; --ink: #24292f; --soft: #626b75; --line: #d5dae0; --paper: #ffffff; --box: #f5f7f9 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #d7dde4; --soft: #97a1ac; --line: #3b434d; --paper: #14181d; --box: #1c2229 } }
body { max-width: 62rem; margin: 2.5rem auto; padding: 0 1.2rem; color: var(--ink); background: var(--paper);
  font: 16px/1.5 system-ui, sans-serif }
h1 { font-size: 1.6rem; margin-bottom: 0 } h2 { font-size: 1.15rem; margin-top: 2.2rem }
p, figcaption { color: var(--soft); margin: .3rem 0 }
figure { margin: .8rem 0 } img { width: 100%; height: auto }
div { overflow-x: auto } table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { padding: .35rem .7rem; border-bottom: 1px solid var(--line); text-align: right }
th:first-child, td:first-child { text-align: left } th { color: var(--soft); font-weight: 500; font-size: .85rem }
pre { background: var(--box); padding: 1rem; white-space: pre-wrap; overflow-wrap: anywhere; font-size: .85rem }
"""


class _Run:
    """What the report is made from: the records by phase, in the order of training, and where each phase starts."""

    def __init__(self, folder: Path) -> None:
        self.name = folder.resolve().name
        self.records = [r for r in read(folder / FILE) if isinstance(r.get("step"), int)]
        if not self.records:
            raise ValueError(f"{folder / FILE}: has no records")
        path = folder / "config.json"
        try:
            self.raw = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        try:
            self.config = from_dict(Config, self.raw)
        except ConfigError:
            self.config = None  # another version's: its text is shown, nothing is derived from it
        planned = {p.name: p.steps for p in self.config.phases} if self.config else {}
        seen = list(dict.fromkeys(str(r.get("phase", "run")) for r in self.records))
        self.phases = [name for name in planned if name in seen] + [name for name in seen if name not in planned]
        self.offsets: dict[str, int] = {}
        start = 0
        for name in self.phases:
            self.offsets[name] = start
            start += max([planned.get(name, 0), *(r["step"] for r in self.of(name))])

    def of(self, phase: str, kind: str | None = None) -> list[Record]:
        return [
            r for r in self.records if str(r.get("phase", "run")) == phase and kind in (None, r.get("kind", "train"))
        ]

    def series(self, phase: str, key: str, kind: str = "train") -> tuple[list[int], list[float]]:
        """Steps, counted across phases, and values of one quantity; unknown ones are left out."""
        found = [(self.offsets[phase] + r["step"], r[key]) for r in self.of(phase, kind) if _number(r.get(key))]
        return [step for step, _ in found], [value for _, value in found]

    def routed(self, phase: str) -> list[Record]:
        """The records of a phase that have routers, in order of steps."""
        return [r for r in self.of(phase) if isinstance(r.get("routers"), dict) and r["routers"]]

    def parameters(self, phase: str) -> int | None:
        for row in self.config.phases if self.config else ():
            if row.name == phase:
                model = self.config.model if row.model == "model" else self.config.model.vanilla()
                return parameter_count(model).total
        return None


def summary(run: Path) -> list[Record]:
    """One row a phase: the run's main numbers, None where unknown. Losses in nats per token.

    Raises FileNotFoundError or ValueError where `run` has no readable metrics.
    """
    return _summary(_Run(Path(run)))


def write_report(run: Path) -> Path:
    """Writes `run/report.html` from the run's metrics.jsonl and, where present, config.json; returns its path.

    The page is replaced atomically. Raises FileNotFoundError or ValueError where there are no readable metrics.
    """
    data = _Run(Path(run))
    path = Path(run) / "report.html"
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(_page(data), encoding="utf-8")
    temporary.replace(path)
    return path


def _summary(run: _Run) -> list[Record]:
    rows = []
    for phase in run.phases:
        validation: Record = {}
        for record in run.of(phase, "validation")[-1:] + run.of(phase, "final")[-1:]:
            # A final evaluation may say less than the one during training at the same step.
            validation = {**(validation if validation.get("step") == record["step"] else {}), **record}
        loss: Any = validation.get("loss")
        speeds = run.series(phase, "tokens_per_s")[1]
        perplexity = validation.get("perplexity", math.exp(min(loss, 700)) if _number(loss) else None)
        rows.append(
            {
                "phase": phase,
                "steps": max(r["step"] for r in run.of(phase)),
                "parameters": run.parameters(phase),
                "train_loss": next(reversed(_smooth(run.series(phase, "loss")[1])), None),
                "validation_loss": loss,
                "perplexity": perplexity,
                "bits_per_byte": validation.get("bits_per_byte"),
                "tokens_per_s": statistics.median(speeds) if speeds else None,
            }
        )
    return rows


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _percent(value: Any, whole: float = 100) -> float:
    """`value` of `whole`, NaN where it is unknown: a gap in the picture."""
    return whole * value if _number(value) else math.nan


def _smooth(values: Sequence[float]) -> list[float]:
    """The centred mean over a fiftieth of the series; at its ends over the half of that which there is."""
    half, sums = len(values) // 100, [0.0, *itertools.accumulate(values)]
    spans = ((max(0, i - half), min(len(values), i + half + 1)) for i in range(len(values)))
    return [(sums[end] - sums[start]) / (end - start) for start, end in spans]


# The page.


def _page(run: _Run) -> str:
    parts = [f"<h1>{html.escape(run.name)}</h1>", _describe(run), _table(_summary(run))]
    parts += [
        "<h2>Training</h2>",
        _figure(
            10,
            4.2,
            lambda f, t: _losses(run, f, t),
            "Loss of every phase. Thin: each step; thick: smoothed; circles: held-out documents.",
        ),
    ]
    parts.append(
        _figure(10, 2.9, lambda f, t: _rates(run, f, t), "Learning rate, and norm of the gradient before clipping.")
    )
    for phase in run.phases:
        routed = run.routed(phase)
        if routed:
            parts += _routing(run, phase, routed)
    for phase in run.phases:
        for final in run.of(phase, "final")[-1:]:
            parts += _outcome(phase, final)
    if run.raw is not None:
        text = html.escape(json.dumps(run.raw, indent=2, ensure_ascii=False))
        parts.append(f"<h2>Configuration</h2><details><summary>config.json</summary><pre>{text}</pre></details>")
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    head += f"<title>{html.escape(run.name)}</title><style>{_STYLE}</style>"
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>\n' + "\n".join(parts) + ("\n</body></html>\n")


def _describe(run: _Run) -> str:
    if run.config is None:
        return ""
    m, data = run.config.model, run.config.data
    text = (
        f"Width {m.d_model}, {m.num_bottom} + {m.num_top} anchors, {m.num_chunks} chunk(s) of {m.num_attn_modules} "
        f"attention and {m.num_ffn_modules} FFN modules, {m.num_steps} steps, K = {m.top_k}"
        f"{', SKIP' if m.skip else ''}; depth {m.depth} layers, {m.num_layers} in the vanilla model. "
        f"Data {data.source}: {data.batch_size} sequences of {data.length} tokens per step."
    )
    return f"<p>{html.escape(text)}</p>"


def _table(rows: list[Record]) -> str:
    columns: list[tuple[str, str, str]] = [
        ("phase", "Phase", "{}"),
        ("steps", "Steps", "{:,}"),
        ("parameters", "Parameters", "{:,}"),
        ("train_loss", "Train loss<br>nats/token, smoothed", "{:.4f}"),
        ("validation_loss", "Validation loss<br>nats/token", "{:.4f}"),
        ("perplexity", "Perplexity<br>per token", "{:.2f}"),
        ("bits_per_byte", "Bits<br>per byte", "{:.4f}"),
        ("tokens_per_s", "Speed<br>tokens/s, median", "{:,.0f}"),
    ]
    columns = [column for column in columns if any(row[column[0]] is not None for row in rows)]
    head = "".join(f"<th>{title}</th>" for _, title, _ in columns)
    body = ""
    for row in rows:
        cells = ["–" if row[key] is None else html.escape(form.format(row[key])) for key, _, form in columns]
        body += "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
    return f"<div><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def _routing(run: _Run, phase: str, routed: list[Record]) -> list[str]:
    parts = [f"<h2>Routing in phase {html.escape(phase)}</h2>"]
    # The held-out documents' figures are steadier than one training batch's.
    known = [r for r in routed if any(_get(r, side, "usage") for side in _SIDES)]
    latest = next(reversed([r for r in known if r.get("kind") == "validation"] or known), None)
    if latest is not None:
        usage = {side: _get(latest, side, "usage") for side in _SIDES}
        height = max(2.4, 1.3 + 0.26 * max(len(table) for table in usage.values() if table))
        caption = f"Share of a step's choices that fall on each module, after {latest['step']:,} steps of the phase."
        parts.append(_figure(10, height, lambda f, t: _heat_maps(run, usage, f, t), caption))
    if any(_get(r, side, key) is not None for r in routed for side in _SIDES for key in ("entropy", "skip")):
        caption = "Entropy of the routers' probabilities at each assembly step, and the share of choices on SKIP."
        parts.append(_figure(10, 2.9, lambda f, t: _router_curves(run, phase, routed, f, t), caption))
    return parts


def _outcome(phase: str, final: Record) -> list[str]:
    parts = []
    exchanged = final.get("exchanged")
    if isinstance(exchanged, dict) and exchanged.get("normal") and exchanged.get("exchanged"):
        normal, other = ([v for v in exchanged[key] if _number(v)] for key in ("normal", "exchanged"))
        if normal and other:
            difference = statistics.fmean(other) - statistics.fmean(normal)
            caption = f"The exchange changes the mean loss by {difference:+.4f} nats/token."
            parts.append(f"<h2>Exchange test after phase {html.escape(phase)}</h2>")
            parts.append(_figure(10, 2.2, lambda f, t: _exchange(normal, other, f, t), caption))
    if isinstance(final.get("sample"), str):
        parts.append(f"<h2>Sample after phase {html.escape(phase)}</h2><pre>{html.escape(final['sample'])}</pre>")
    return parts


# The pictures. Each is drawn by a function of an empty figure and a theme.


def _figure(width: float, height: float, draw: Draw, caption: str) -> str:
    """A picture for both themes as HTML; sizes in inches."""
    data = {}
    for theme, look in _THEMES.items():
        ink, faint = look["ink"], look["faint"]
        style: Any = {
            "text.color": ink, "axes.labelcolor": ink, "xtick.color": ink, "ytick.color": ink, "axes.edgecolor": faint,
            "grid.color": faint, "axes.facecolor": "none", "figure.facecolor": "none", "axes.grid": True,
            "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 10, "font.size": 9,
            "grid.linewidth": 0.5, "legend.frameon": False, "axes.axisbelow": True, "lines.markersize": 3,
        }  # fmt: skip
        with matplotlib.rc_context(style):
            figure = Figure(figsize=(width, height), dpi=130, layout="constrained")
            draw(figure, theme)
            buffer = io.BytesIO()
            FigureCanvasAgg(figure).print_png(buffer)
        data[theme] = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    text = html.escape(caption)
    return (
        f'<figure><picture><source media="(prefers-color-scheme: dark)" srcset="{data["dark"]}">'
        f'<img src="{data["light"]}" alt="{text}"></picture><figcaption>{text}</figcaption></figure>'
    )


def _over_training(run: _Run, axes: Axes, label: str, *, names: bool = False) -> None:
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


def _marker(points: Sequence[object]) -> str:
    """The style of a line: a single point would be none."""
    return "o-" if len(points) < 2 else "-"


def _losses(run: _Run, figure: Figure, theme: str) -> None:
    axes = figure.add_subplot()
    for i, phase in enumerate(run.phases):
        colour = _COLOURS[i % len(_COLOURS)]
        steps, losses = run.series(phase, "loss")
        axes.plot(steps, losses, color=colour, alpha=0.3, linewidth=0.7)
        axes.plot(steps, _smooth(losses), _marker(steps), color=colour, linewidth=1.6)
        held = run.series(phase, "loss", "validation")
        axes.plot(*held, "o", markersize=5, markerfacecolor=colour, markeredgecolor=_THEMES[theme]["ink"])
    _over_training(run, axes, "loss, nats per token", names=True)


def _rates(run: _Run, figure: Figure, theme: str) -> None:
    rate, norm = figure.subplots(1, 2)
    for i, phase in enumerate(run.phases):
        colour = _COLOURS[i % len(_COLOURS)]
        steps, values = run.series(phase, "learning_rate")
        rate.plot(steps, values, _marker(steps), color=colour, linewidth=1.4)
        steps, norms = run.series(phase, "grad_norm")
        norm.plot(steps, norms, color=colour, alpha=0.3, linewidth=0.7)
        norm.plot(steps, _smooth(norms), _marker(steps), color=colour, linewidth=1.4)
        if any(value > 0 for value in norms):
            norm.set_yscale("log")
    rate.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    _over_training(run, rate, "learning rate, per step")
    _over_training(run, norm, "gradient norm, L2")


def _heat_maps(run: _Run, usage: dict[str, Any], figure: Figure, theme: str) -> None:
    shown = [side for side in _SIDES if usage[side]]
    widths = [len(usage[side][0]) for side in shown]
    for axes, side in zip(figure.subplots(1, len(shown), squeeze=False, width_ratios=widths)[0], shown, strict=True):
        table = [[_percent(v) for v in row] for row in usage[side]]
        image = axes.imshow(table, cmap=_THEMES[theme]["map"], norm=Normalize(0, 100), aspect="auto")
        names = _class_names(run, side, len(table[0]))
        axes.grid(False)
        axes.set_title(_SIDE_NAMES[side])
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


def _class_names(run: _Run, side: str, classes: int) -> list[str]:
    """Modules by number; classes without a module are `null`; the last one is SKIP where the model has it."""
    if run.config is None:
        return [str(i) for i in range(classes)]
    model = run.config.model
    modules = model.num_attn_modules if side == "attention" else model.num_ffn_modules
    names = [str(i) if i < modules else "null" for i in range(classes)]
    return [*names[:-1], "SKIP"] if model.skip else names


def _router_curves(run: _Run, phase: str, routed: list[Record], figure: Figure, theme: str) -> None:
    def over_training(side: str, key: str) -> tuple[list[int], list[Any]]:
        found = [(run.offsets[phase] + r["step"], _get(r, side, key)) for r in routed]
        found = [(step, value) for step, value in found if value is not None and value != []]
        return [step for step, _ in found], [value for _, value in found]

    entropy = {side: over_training(side, "entropy") for side in _SIDES}
    skip = {side: over_training(side, "skip") for side in _SIDES}
    shown = [side for side in _SIDES if entropy[side][0]]
    panels = list(figure.subplots(1, len(shown) + any(steps for steps, _ in skip.values()), squeeze=False)[0])
    count = max((len(row) for _, rows in entropy.values() for row in rows), default=1)
    first, last = _THEMES[theme]["lines"]
    shades = matplotlib.colormaps["viridis"](np.linspace(first, last, 64))
    colours = ScalarMappable(Normalize(0, max(count - 1, 1)), ListedColormap(shades))
    lines = colours.to_rgba(np.arange(count))
    for axes, side in zip(panels, shown, strict=False):
        steps, rows = entropy[side]
        for h, values in enumerate(zip(*rows, strict=False)):
            axes.plot(steps, [_percent(v, 1) for v in values], _marker(steps), color=lines[h], linewidth=1)
        axes.set(title=_SIDE_NAMES[side], xlabel=_STEPS_LABEL, ylabel="router entropy, nats")
        axes.set_ylim(bottom=0)
    if shown:
        figure.colorbar(colours, ax=panels[: len(shown)], label="assembly step, all chunks", pad=0.01)
    if len(panels) > len(shown):
        axes = panels[-1]
        for side, colour, style in zip(_SIDES, _COLOURS, ("-", "--"), strict=False):
            steps, shares = skip[side]
            axes.plot(steps, [_percent(v) for v in shares], color=colour, linestyle=style, label=_SIDE_NAMES[side])
        axes.set(title="SKIP", xlabel=_STEPS_LABEL, ylabel="share of choices, %", ylim=(0, 100))
        axes.legend()


def _exchange(normal: list[float], exchanged: list[float], figure: Figure, theme: str) -> None:
    axes = figure.add_subplot()
    for y, values, colour in ((1, normal, _COLOURS[0]), (0, exchanged, _COLOURS[1])):
        axes.plot(values, [y] * len(values), "o", color=colour, markersize=8, alpha=0.8)
        axes.plot([statistics.fmean(values)], [y], "|", color=_THEMES[theme]["ink"], markersize=26)
    axes.set_yticks([1, 0], ["normal", "exchanged"])
    axes.set_ylim(-0.6, 1.6)
    axes.set_xlabel("loss, nats per token (circle: a seed; bar: mean)")


def _get(record: Record, side: str, key: str) -> Any:
    """One quantity of one side's routers, None where it is missing."""
    return (record["routers"].get(side) or {}).get(key)


def main(arguments: Sequence[str] | None = None) -> int:
    """The program; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m train.report", description="Writes a run's report.html.")
    parser.add_argument("run", type=Path, metavar="RUN", help="the run's folder")
    parser.add_argument("--json", action="store_true", help="print the summary table as JSON, write nothing")
    flags = parser.parse_args(arguments)
    try:
        print(json.dumps(summary(flags.run)) if flags.json else write_report(flags.run))
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        text = f"{error.filename}: no such file" if isinstance(error, OSError) else str(error)
        print(f"report: {text}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
