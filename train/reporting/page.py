"""The report of a run, one self-contained page, `RUN/report.html`.

Pictures are embedded, each once for light and once for dark screens, and so is the routing explorer; nothing is loaded
from elsewhere.
"""

import html
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mom_jax.analysis.explorer import POLICY, fragment
from mom_jax.config import SIDES, ModelConfig
from train.files import write_whole, writing
from train.reporting import insight, numbers, pictures
from train.reporting.history import Record, Run, is_number, latest_usage, router_value, smooth, understood
from train.reporting.routes import beside
from train.reporting.tables import Column, columns_as_html

_STYLE = """
:root { color-scheme: light dark; --ink: #24292f; --soft: #626b75; --line: #d5dae0; --paper: #ffffff; --box: #f5f7f9;
  --alarm: #b3530a }
@media (prefers-color-scheme: dark) {
  :root { --ink: #d7dde4; --soft: #97a1ac; --line: #3b434d; --paper: #14181d; --box: #1c2229;
    --alarm: #f0a35e } }
body { max-width: 62rem; margin: 2.5rem auto; padding: 0 1.2rem; color: var(--ink); background: var(--paper);
  font: 16px/1.5 system-ui, sans-serif }
h1 { font-size: 1.6rem; margin-bottom: 0 } h2 { font-size: 1.15rem; margin-top: 2.2rem }
p, figcaption { color: var(--soft); margin: .3rem 0 }
figure { margin: .8rem 0 } img { width: 100%; height: auto }
div.table { overflow-x: auto } table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { padding: .35rem .7rem; border-bottom: 1px solid var(--line); text-align: right }
td { white-space: nowrap } th:first-child, td:first-child { text-align: left; white-space: normal; min-width: 5rem }
th { color: var(--soft); font-weight: 500; font-size: .85rem }
.signs { border: 2px solid var(--alarm); border-radius: .4rem; padding: 0 1rem .4rem; margin: 1rem 0 }
.signs h2 { margin-top: .6rem } .signs h2::before { content: "\\26A0\\FE0E  "; color: var(--alarm) }
.signs span { color: var(--soft) } .signs li { margin: .4rem 0 }
pre { background: var(--box); padding: 1rem; white-space: pre-wrap; overflow-wrap: anywhere; font-size: .85rem }
"""


def summary(run: Path) -> list[Record]:
    """One row a phase: the run's main numbers, None where unknown. Losses in nats per token.

    Raises FileNotFoundError or ConfigError where `run` has no readable metrics.
    """
    with understood(Path(run)):
        return summary_of(Run(Path(run)))


def write_report(run: Path, against: Path | None = None) -> Path:
    """Writes `run/report.html` from the run's metrics.jsonl and, where there are any, config.json and routes; returns
    its path.

    against: another run, whose last phase's routes stand beside this one's. The page is replaced atomically. Raises
    FileNotFoundError or ConfigError where there are no readable metrics, and ConfigError naming `against` where its
    routes cannot be set beside this run's.
    """
    with understood(Path(run)):
        data = Run(Path(run))
        routes = beside(Path(run), data.phases, against)
        page = _page(data, routes).encode(errors="backslashreplace")
    path = Path(run) / "report.html"
    with writing(path):
        write_whole(path, page)
    return path


def summary_of(run: Run) -> list[Record]:
    """`summary` of a run that was read."""
    rows = []
    for phase in run.phases:
        validation: Record = {}
        for record in run.of(phase, "validation")[-1:] + run.of(phase, "final")[-1:]:
            # A final evaluation may say less than the one during training at the same step.
            validation = {**(validation if validation.get("step") == record["step"] else {}), **record}
        loss: Any = validation.get("loss")
        speeds = run.series(phase, "tokens_per_s")[1]
        perplexity = validation.get("perplexity", math.exp(min(loss, 700)) if is_number(loss) else None)
        rows.append(
            {
                "phase": phase,
                "steps": max(r["step"] for r in run.of(phase)),
                "parameters": run.parameters(phase),
                "train_loss": _train_loss(run, phase),
                "validation_loss": loss,
                "perplexity": perplexity,
                "bits_per_byte": validation.get("bits_per_byte"),
                "tokens_per_s": statistics.median(speeds) if speeds else None,
                "data_wait": _data_wait(run, phase),
                **numbers.counted(run, phase),
            }
        )
    return rows


def _train_loss(run: Run, phase: str) -> float | None:
    """Smoothed, at the phase's last step; None where that has no loss."""
    last = run.of(phase, "train")[-1:]
    if not last or not is_number(last[0].get("loss")):
        return None
    return smooth(run.series(phase, "loss")[1])[-1]


def _data_wait(run: Run, phase: str) -> float | None:
    """The share of the steps' time that went by waiting for data."""
    timed = [r for r in run.of(phase, "train") if is_number(r.get("data_wait")) and is_number(r.get("seconds"))]
    seconds = sum(r["seconds"] for r in timed)
    return sum(r["data_wait"] * r["seconds"] for r in timed) / seconds if seconds else None


def _page(run: Run, routes: dict[str, dict[str, Any]]) -> str:
    losses = "Loss of every phase. Thin: each step; thick: smoothed; circles: held-out documents."
    rates = "Learning rate, and norm of the gradient before clipping."
    parts = [
        f"<h1>{html.escape(run.name)}</h1>",
        _describe(run),
        *left_out(run),
        *numbers.section(run),
        *insight.signs(run),
        columns_as_html(COLUMNS, summary_of(run), numbers.COUNTS),
        *insight.cost(run),
        "<h2>Training</h2>",
        pictures.embedded(10, 4.2, lambda f, t: pictures.losses(run, f, t), losses),
        pictures.embedded(10, 2.9, lambda f, t: pictures.rates(run, f, t), rates),
    ]
    for phase in run.phases:
        routed = run.routed(phase)
        if routed:
            parts += _routing(run, phase, routed)
    parts += insight.inside(run)
    if routes:
        parts += ["<h2>Routing explorer</h2>", fragment(routes)]
    for phase in run.phases:
        for final in run.of(phase, "final")[-1:]:
            parts += _outcome(phase, final)
    if run.raw is not None:
        text = html.escape(json.dumps(run.raw, indent=2, ensure_ascii=False))
        parts.append(f"<h2>Configuration</h2><details><summary>config.json</summary><pre>{text}</pre></details>")
    return whole_page(run.name, parts)


GENERATOR = '<meta name="generator" content="mom_jax">'  # near the start of all pages


def whole_page(title: str, parts: Sequence[str]) -> str:
    """An HTML file of these parts, which loads nothing from elsewhere."""
    head = f'<meta charset="utf-8">{GENERATOR}<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
    head += '<meta name="viewport" content="width=device-width">'
    head += f"<title>{html.escape(title)}</title><style>{_STYLE}</style>"
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>\n' + "\n".join(parts) + ("\n</body></html>\n")


def _describe(run: Run) -> str:
    if run.config is None:
        return ""
    m, data = run.config.model, run.config.data
    text = (
        f"Width {m.d_model}, {m.num_bottom} + {m.num_top} anchors, {m.num_chunks} chunk(s) of {m.num_attn_modules} "
        f"attention and {m.num_ffn_modules} FFN modules{_grain(m)}, {m.num_steps} steps, {_top_k(m)}"
        f"{', SKIP' if m.skip else ''}; depth {m.depth} layers, {m.num_layers} in the vanilla model. "
        f"Data {data.source}: {data.batch_size} sequences of {data.length} tokens per step."
    )
    return f"<p>{html.escape(text)}</p>"


def left_out(run: Run) -> list[str]:
    """How many broken documents the data was prepared without."""
    found = [record.get("left_out") for phase in run.phases for record in run.of(phase, "data")]
    lines = []
    for source, kinds in (found[-1] or {}).items() if found else ():
        counts = ", ".join(f"{count:,} {kind}" for kind, count in sorted(kinds.items()))
        lines.append(f"<p>{html.escape(f'Left out of {source} as broken: {sum(kinds.values()):,} ({counts}).')}</p>")
    return lines


def _grain(model: ModelConfig) -> str:
    return f", each 1/{model.grain('ffn')} of a layer's" if model.grain("ffn") > 1 else ""


def _top_k(model: ModelConfig) -> str:
    attention, ffn = (model.side_top_k(side) for side in SIDES)
    return f"K = {ffn}" if attention == ffn else f"K = {attention} (attention) and {ffn} (FFN)"


# Of a summary: the key, the title, and how a value is written.
COLUMNS: tuple[Column, ...] = (
    ("phase", "Phase", "{}"),
    ("steps", "Steps", "{:,}"),
    ("parameters", "Parameters", "{:,}"),
    ("train_loss", "Train loss\nnats/token, smoothed", "{:.4f}"),
    ("validation_loss", "Validation loss\nnats/token", "{:.4f}"),
    ("perplexity", "Perplexity\nper token", "{:.2f}"),
    ("bits_per_byte", "Bits\nper byte", "{:.4f}"),
    ("tokens_per_s", "Speed\ntokens/s, median", "{:,.0f}"),
    ("data_wait", "Waiting\nfor data", "{:.2%}"),
    ("without_loss", "Steps\nwithout a loss", "{:,}"),
    ("skipped", "Updates\nskipped", "{:,}"),
    ("rewinds", "Rewinds", "{:,}"),
    ("spikes", "Spikes", "{:,}"),
)


def _routing(run: Run, phase: str, routed: list[Record]) -> list[str]:
    parts = [f"<h2>Routing in phase {html.escape(phase)}</h2>"]
    latest = latest_usage(routed)
    if latest is not None:
        usage = {side: router_value(latest, side, "usage") for side in SIDES}
        height = max(2.4, 1.3 + 0.26 * max(len(table) for table in usage.values() if table))
        caption = f"Share of a step's choices that fall on each module, after {latest['step']:,} steps of the phase."
        parts.append(pictures.embedded(10, height, lambda f, t: pictures.heat_maps(run, usage, f, t), caption))
    if any(router_value(r, side, key) is not None for r in routed for side in SIDES for key in ("entropy", "skip")):
        skipped = ", and the share of choices on SKIP" if pictures.can_skip(run) else ""
        caption = f"Entropy of the routers' probabilities at each assembly step{skipped}."
        parts.append(pictures.embedded(10, 2.9, lambda f, t: pictures.router_curves(run, phase, routed, f, t), caption))
    return parts


def _outcome(phase: str, final: Record) -> list[str]:
    parts = []
    exchanged = final.get("exchanged")
    if isinstance(exchanged, dict) and exchanged.get("normal") and exchanged.get("exchanged"):
        normal, other = ([v for v in exchanged[key] if is_number(v)] for key in ("normal", "exchanged"))
        if normal and other:
            difference = statistics.fmean(other) - statistics.fmean(normal)
            caption = f"The exchange changes the mean loss by {difference:+.4f} nats/token."
            parts.append(f"<h2>Exchange test after phase {html.escape(phase)}</h2>")
            parts.append(pictures.embedded(10, 2.2, lambda f, t: pictures.exchange(normal, other, f, t), caption))
    if isinstance(final.get("sample"), str):
        parts.append(f"<h2>Sample after phase {html.escape(phase)}</h2><pre>{html.escape(final['sample'])}</pre>")
    return parts
