"""The pictures of a comparison: a line for each run, on common axes."""

from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from train.reporting.comparison.figures import Compared
from train.reporting.history import Run, is_number, router_value, smooth
from train.reporting.pictures import COLOURS, SIDE_NAMES, marker, percent

_STYLES = ("-", "--", ":")

Curve = tuple[list[int], list[float]]


def line(number: int) -> tuple[str, str]:
    """(colour, style) of a run's lines."""
    return COLOURS[number % len(COLOURS)], _STYLES[number // len(COLOURS) % len(_STYLES)]


class Axis:
    """The horizontal axis of all pictures. tokens: whether it counts tokens, since steps have different numbers."""

    def __init__(self, runs: Sequence[Compared]) -> None:
        configs = [each.run.config for each in runs]
        sizes = {None if config is None else config.data.batch_size * config.data.length for config in configs}
        self.tokens = len(sizes) > 1 and None not in sizes
        self.label = "training tokens, millions, all phases" if self.tokens else "training step, all phases"

    def draw(self, runs: Sequence[Compared], axes: Axes, label: str, curve: Callable[[Run], list[Curve]]) -> None:
        """curve: of a run, one for each phase, or whatever is not to be joined by a line."""
        for number, each in enumerate(runs):
            colour, style = line(number)
            name: str | None = each.name
            for steps, values in curve(each.run):
                if steps:
                    where = each.positions(steps, tokens=self.tokens)
                    axes.plot(where, values, marker(steps, style), color=colour, linewidth=1.4, label=name)
                    name = None
        axes.set(xlabel=self.label, ylabel=label)
        axes.set_xlim(left=0)


def legend(figure: Figure) -> None:
    """Below the picture."""
    found: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(name, handle)
    if found:
        drawn = figure.legend(list(found.values()), list(found), loc="outside lower center", ncols=min(len(found), 2))
        for text in drawn.get_texts():
            text.set_parse_math(False)


def training_loss(runs: Sequence[Compared], figure: Figure, theme: str) -> None:
    axes = figure.add_subplot()
    Axis(runs).draw(runs, axes, "training loss, nats per token", lambda run: _smoothed(run, "loss"))
    legend(figure)


def validation_loss(runs: Sequence[Compared], figure: Figure, theme: str) -> None:
    axes = figure.add_subplot()
    Axis(runs).draw(runs, axes, "validation loss, nats per token", lambda run: _of_phases(run, "loss", "validation"))
    legend(figure)


def learning_rate(runs: Sequence[Compared], figure: Figure, theme: str) -> None:
    axes = figure.add_subplot()
    Axis(runs).draw(runs, axes, "learning rate, per step", lambda run: _of_phases(run, "learning_rate"))
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    legend(figure)


def gradient_norm(runs: Sequence[Compared], figure: Figure, theme: str) -> None:
    axes = figure.add_subplot()
    Axis(runs).draw(runs, axes, "gradient norm, L2", lambda run: _smoothed(run, "grad_norm"))
    if any(value > 0 for each in runs for _, values in _of_phases(each.run, "grad_norm") for value in values):
        axes.set_yscale("log")
    legend(figure)


def _smoothed(run: Run, key: str) -> list[Curve]:
    return [(steps, smooth(values)) for steps, values in _of_phases(run, key)]


def _of_phases(run: Run, key: str, kind: str = "train") -> list[Curve]:
    return [run.series(phase, key, kind) for phase in run.phases]


def entropy(runs: Sequence[Compared], side: str, figure: Figure, theme: str) -> None:
    """Of one side's routers."""
    axes = figure.add_subplot()
    Axis(runs).draw(runs, axes, "entropy, nats, mean of steps", lambda run: routed(run, side, "entropy"))
    axes.set_title(SIDE_NAMES[side])
    axes.set_ylim(bottom=0)
    legend(figure)


def skip(runs: Sequence[Compared], side: str, figure: Figure, theme: str) -> None:
    """Of one side's routers."""

    def percents(run: Run) -> list[Curve]:
        return [(steps, [percent(value) for value in values]) for steps, values in routed(run, side, "skip")]

    axes = figure.add_subplot()
    Axis(runs).draw(runs, axes, "share of choices on SKIP, %", percents)
    axes.set(title=SIDE_NAMES[side], ylim=(0, 100))
    legend(figure)


def routed(run: Run, side: str, key: str) -> list[Curve]:
    """A quantity of one side's routers in the training records, of each phase; of a list its mean."""
    curves = []
    for phase in run.phases:
        steps, values = [], []
        for record in run.routed(phase):
            value = router_value(record, side, key) if record.get("kind", "train") == "train" else None
            known = [float(v or 0) for v in (value if isinstance(value, list) else [value]) if is_number(v)]
            if known:
                steps.append(run.offsets[phase] + record["step"])
                values.append(sum(known) / len(known))
        curves.append((steps, values))
    return curves
