"""The page of a comparison, one self-contained HTML file, and the same as numbers."""

import functools
import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from mom_jax.config import SIDES
from train.files import check_replaceable, write_whole, writing
from train.reporting.comparison import pictures as drawn
from train.reporting.comparison.figures import (
    HELD_OUT,
    Compared,
    differences,
    final_figures,
    opened,
    routed_phase,
    routing_figures,
)
from train.reporting.history import latest_usage, router_value, understood
from train.reporting.numbers import COUNTS
from train.reporting.page import COLUMNS, GENERATOR, whole_page
from train.reporting.pictures import SIDE_NAMES, embedded, heat_maps
from train.reporting.tables import Column, as_html, columns_as_html

FILE = "comparison.html"
_FIGURES: tuple[Column, ...] = (
    ("run", "Run", "{}"),
    *COLUMNS[:3],
    ("active", "Active\nper token", "{:,}"),
    ("flops", "Forward pass\nMFLOPs/token", "{:,.1f}"),
    *COLUMNS[3:5],
    ("difference", "Difference\nto the first run", "{:+.4f}"),
    *COLUMNS[5:],
    ("signs", "Signs\nof failure", "{:,}"),
)
_ROUTING: tuple[Column, ...] = (
    ("run", "Run", "{}"),
    ("phase", "Phase", "{}"),
    ("side", "Side", "{}"),
    ("entropy", "Entropy\nnats, mean of steps", "{:.3f}"),
    ("largest", "Most used module\nshare, mean of steps", "{:.1%}"),
    ("skip", "SKIP\nshare", "{:.1%}"),
    ("taken", "Modules taken\nper step", "{:.2f}"),
    ("depth", "Effective depth\nmodules", "{:.2f}"),
    ("similarity", "Similarity of outputs\nCKA", "{:.3f}"),
    ("exchange", "Exchange test\nnats/token", "{:+.4f}"),
)
# Side by side where there is room.
_STYLE = """<style>
body { max-width: 84rem }
.curves, .runs { display: grid; gap: 0 1.5rem }
.curves { grid-template-columns: repeat(auto-fit, minmax(min(34rem, 100%), 1fr)) }
.runs { grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)) }
.runs h3 { font-size: 1rem; margin: .8rem 0 0; overflow-wrap: anywhere }
</style>"""


def compare(folders: Sequence[Path]) -> dict[str, Any]:
    """The comparison as JSON has it: by run the figures of phases and of routing, and the fields that differ."""
    runs = opened(folders)
    with understood(folders[0]):
        return {
            "runs": {each.name: str(each.folder) for each in runs},
            "figures": final_figures(runs),
            "routing": routing_figures(runs),
            "differences": differences(runs),
        }


def write_comparison(folders: Sequence[Path], output: Path | None = None) -> Path:
    """Writes the page of several runs, by default `comparison.html` in the first one's folder; returns its path.

    The page is replaced atomically. Raises FileNotFoundError or ConfigError where a run has no readable metrics, and
    ConfigError where another file than such a page is at `output`.
    """
    if output is not None:
        check_replaceable(output, GENERATOR.encode(), "a page of this program")
    runs = opened(folders)
    with understood(folders[0]):
        page = _page(runs).encode(errors="backslashreplace")
    path = output or Path(folders[0]) / FILE
    with writing(path):
        write_whole(path, page)
    return path


def _page(runs: Sequence[Compared]) -> str:
    found = differences(runs)
    parts = [
        _STYLE,
        "<h1>Comparison of runs</h1>",
        *_caution(found),
        "<h2>Final figures</h2>",
        columns_as_html(_FIGURES, final_figures(runs), (*COUNTS, "signs")),
        *_configurations(runs, found),
        "<h2>Training</h2>",
        *_pictures(
            (runs, drawn.training_loss, "Training loss, smoothed. Phases are not joined."),
            (runs, drawn.validation_loss, "Loss on held-out documents."),
            (runs, drawn.learning_rate, "Learning rate."),
            (runs, drawn.gradient_norm, "Norm of the gradient before clipping, smoothed."),
        ),
        *_routing(runs),
    ]
    return whole_page(f"{runs[0].name} and {len(runs) - 1} more", parts)


def _caution(found: dict[str, list[Any]]) -> list[str]:
    """That losses do not compare, where they do not."""
    names = [name for name in found if name in HELD_OUT]
    if not names:
        return []
    text = f"These runs differ in {', '.join(names)}: losses of other held-out texts or other tokens do not compare."
    return [f'<section class="signs"><h2>Not the same text</h2><p>{html.escape(text)}</p></section>']


def _configurations(runs: Sequence[Compared], found: dict[str, list[Any]]) -> list[str]:
    parts = ["<h2>What the configurations differ in</h2>"]
    unread = [each.name for each in runs if each.run.raw is None]
    if unread:
        parts.append(f"<p>{html.escape('No config.json: ' + ', '.join(unread))}.</p>")
    if not found:
        return [*parts, "<p>Nothing, but for where they lie.</p>"]
    rows = [[name, *(_value(value) for value in values)] for name, values in found.items()]
    return [*parts, as_html(["Field", *(each.name for each in runs)], rows)]


def _value(value: Any) -> str:
    return "–" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _routing(runs: Sequence[Compared]) -> list[str]:
    rows = [{**row, "side": SIDE_NAMES[row["side"]]} for row in routing_figures(runs)]
    if not rows:
        return []
    caption = (
        "In the last phase with routers. The exchange test says by how much the loss rises where tokens take each "
        "other's choices: nothing, if the routers know nothing of the tokens."
    )
    parts = ["<h2>Routing</h2>", columns_as_html(_ROUTING, rows, ("skip",)), f"<p>{html.escape(caption)}</p>"]
    sides = [side for side in SIDES if any(row["side"] == SIDE_NAMES[side] for row in rows)]
    known = [("entropy", drawn.entropy, "Entropy of the routers' probabilities in training.")]
    known.append(("skip", drawn.skip, "The share of choices on SKIP in training."))
    for key, draw, text in known:
        if any(row[key] for row in rows):
            parts += _pictures(*((runs, functools.partial(_of_side, draw, side), text) for side in sides))
    return [*parts, '<div class="runs">', *(_usage(each) for each in runs), "</div>"]


def _of_side(draw: Any, side: str, runs: Sequence[Compared], figure: Figure, theme: str) -> None:
    draw(runs, side, figure, theme)


def _pictures(*drawings: tuple[Sequence[Compared], Any, str]) -> list[str]:
    """Runs, what draws them, and what is said of the picture; beside each other where there is room."""
    made = [embedded(6, 3.9, functools.partial(draw, runs), caption) for runs, draw, caption in drawings]
    return ['<div class="curves">', *made, "</div>"]


def _usage(each: Compared) -> str:
    """Which modules a run uses."""
    phase = routed_phase(each.run)
    latest = None if phase is None else latest_usage(each.run.routed(phase))
    title = f"<h3>{html.escape(each.name)}</h3>"
    if latest is None:
        return f"<div>{title}<p>No routers.</p></div>"
    usage = {side: router_value(latest, side, "usage") for side in SIDES}
    tallest = max(len(table) for table in usage.values() if table)
    caption = f"Share of a step's choices that fall on each module, after {latest['step']:,} steps of {phase}."
    picture = embedded(7, max(2.4, 1.3 + 0.26 * tallest), lambda f, t: heat_maps(each.run, usage, f, t), caption)
    return f"<div>{title}{picture}</div>"
