"""The report's sections on what is inside: signs of failure, what the model costs, whether modules specialise, what
choices depend on, how deep tokens go. A section whose records the log does not have is left out."""

import dataclasses
import html
import math
from typing import Any

from mom_jax.analysis.cost import forward_flops_per_token, parameter_count, training_memory_bytes
from mom_jax.analysis.dependence import Dependence
from mom_jax.config import SIDES, ModelConfig, Side
from train.reporting import insight_pictures, pictures
from train.reporting.history import Record, Run, is_number, router_value
from train.reporting.pictures import SIDE_NAMES
from train.reporting.tables import as_html


def signs(run: Run) -> list[str]:
    """The signs of failure that training saw, each with its remedy, in the order in which they came."""
    items = []
    for phase in run.phases:
        for record in run.of(phase, "sign"):
            side = SIDE_NAMES.get(record.get("side") or "")
            where = [str(record.get("sign", "sign")).replace("_", " "), *([side] if side else [])]
            when = f"phase {phase}, step {record['step']:,}"
            title, text = html.escape(", ".join(where)), html.escape(str(record.get("text", "")))
            items.append(f"<li><b>{title}</b> <span>({html.escape(when)})</span><br>{text}</li>")
    if not items:
        return []
    return ['<section class="signs"><h2>Signs of failure</h2>', "<ul>", *items, "</ul></section>"]


def cost(run: Run) -> list[str]:
    """What the model costs beside its vanilla counterpart: with all modules that tokens may take, and as measured."""
    if run.config is None or not run.config.model.routed_sides:
        return []
    model, data = run.config.model, run.config.data
    rows: list[tuple[str, ModelConfig, dict[Side, float]]] = [
        ("vanilla", model.vanilla(), {}),
        ("MoM, all that tokens may take", model, {}),
    ]
    for phase in run.phases:
        taken = _taken(run, phase)
        if taken:
            rows.append((f"MoM, taken after {phase}", model, taken))
    table: list[list[str]] = []
    first: list[float] = []
    for name, config, taken in rows:
        count = parameter_count(config)
        flops = forward_flops_per_token(
            config, data.length, attn_taken=taken.get("attention"), ffn_taken=taken.get("ffn")
        )
        memory = training_memory_bytes(config, data.batch_size, data.length)["total"]
        # What is taken changes the work, not what must be there; how many parameters it makes active is in the FLOPs.
        values: list[float | None] = [count.total, None if taken else count.active, flops, memory]
        known = [value or 0.0 for value in values]
        first = first or known
        cells = [_amount(value, unit) for value, unit in zip(values, ("", "", "FLOPs", "B"), strict=True)]
        if table:
            shares = zip(cells, values, known, first, strict=True)
            cells = [cell if value is None else f"{cell} ({own / base:.2f}×)" for cell, value, own, base in shares]
        table.append([name, *cells])
    header = ["Model", "Parameters", "Active\nper token", "Forward pass\nper token", "Training memory\nestimate"]
    caption = (
        f"Sequences of {data.length} tokens; memory of {data.batch_size} of them on one device, with AdamW's moments, "
        "without what the compiler adds. In brackets: times vanilla's. Active parameters count again each time that "
        "they are used."
    )
    return ["<h2>Cost</h2>", as_html(header, table), f"<p>{html.escape(caption)}</p>"]


def _taken(run: Run, phase: str) -> dict[Side, float]:
    """Modules that tokens take at a step, by the last record that knows."""
    for kind in ("final", "validation", "train"):
        for record in reversed(run.of(phase, kind)):
            if isinstance(record.get("routers"), dict):
                taken = {side: router_value(record, side, "taken") for side in SIDES}
                known = {side: float(value) for side, value in taken.items() if is_number(value)}
                if known:
                    return known
    return {}


def _amount(value: float | None, unit: str) -> str:
    """1.23 M, 45.6 GB."""
    if value is None:
        return "–"
    for prefix, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= 0.9995 * size:  # what is rounded to a thousand has the next prefix
            return f"{value / size:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}".rstrip()


def inside(run: Run) -> list[str]:
    """Specialisation, dependence, depth and churn, from the log's records of analysis."""
    records = [(phase, record) for phase in run.phases for record in run.of(phase, "analysis")]
    return [*_specialisation(run, records), *_dependence(run, records), *_depth(run, records)]


Records = list[tuple[str, Record]]


def table_of(record: Record, *path: str) -> Any:
    """What lies in a record's dictionaries along the path; None where there is nothing."""
    value: Any = record
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def over_training(run: Run, records: Records, *path: str) -> tuple[list[int], list[float]]:
    """Steps, counted across phases, and values of one number of the records; unknown ones are left out."""
    found = [(run.offsets[phase] + record["step"], table_of(record, *path)) for phase, record in records]
    known = [(step, value) for step, value in found if is_number(value)]
    return [step for step, _ in known], [value for _, value in known]


def _specialisation(run: Run, records: Records) -> list[str]:
    keys = ("weights", "outputs", "attention_patterns")
    curves = {(side, key): over_training(run, records, "similarity", side, key) for side in SIDES for key in keys}
    if not any(steps for steps, _ in curves.values()):
        return []
    caption = (
        "Mean similarity of two different modules: of their weights (cosine), of their outputs on the same text "
        "(linear CKA). 1: alike; 0: nothing in common. In a vanilla phase: of the layers that become modules."
    )
    parts = ["<h2>Specialisation</h2>"]
    parts.append(pictures.embedded(10, 2.9, lambda f, t: insight_pictures.similarity(run, curves, f, t), caption))
    phase, last = next((p, r) for p, r in reversed(records) if table_of(r, "similarity"))
    tables = {side: table_of(last, "similarity", side, "outputs_NxN") for side in SIDES}
    tables = {side: table for side, table in tables.items() if table}
    if tables:
        caption = (
            f"Similarity of the outputs of every two modules (linear CKA) after {last['step']:,} steps of {phase}."
        )
        parts.append(pictures.embedded(10, 3.4, lambda f, t: insight_pictures.pairs(tables, f, t), caption))
    return parts


def _dependence(run: Run, records: Records) -> list[str]:
    found = [(phase, record) for phase, record in records if table_of(record, "dependence")]
    if not found:
        return []
    phase, last = found[-1]
    rows = [[SIDE_NAMES[side], *_explained(known)] for side in SIDES if (known := _figures(last, side))]
    if not rows:
        return []
    header = [
        "Side",
        "Entropy,\nnats",
        "Explained by\nthe step",
        "by the token,\ngiven the step",
        "left to\nthe context",
    ]
    caption = (
        f"What the best choice depends on, after {last['step']:,} steps of {phase}: shares of its entropy. In brackets "
        "the mutual information in nats, and what choices explain that were dealt anew, by chance; a share is what "
        "exceeds it."
    )
    parts = ["<h2>What choices depend on</h2>", as_html(header, rows), f"<p>{html.escape(caption)}</p>"]
    if len(found) > 1:
        curves = {
            side: [
                (run.offsets[p] + record["step"], known.shares)
                for p, record in found
                if (known := _figures(record, side))
            ]
            for side in SIDES
        }
        known_sides = {side: points for side, points in curves.items() if points}
        caption = "The same shares over training."
        parts.append(
            pictures.embedded(10, 2.9, lambda f, t: insight_pictures.dependence(run, known_sides, f, t), caption)
        )
    return parts


def _figures(record: Record, side: Side) -> Dependence | None:
    """A side's figures, None where some are missing."""
    figures = {field.name: table_of(record, "dependence", side, field.name) for field in dataclasses.fields(Dependence)}
    return Dependence(**figures) if all(is_number(value) for value in figures.values()) else None


def _explained(known: Dependence) -> list[str]:
    shares = {name: "–" if math.isnan(share) else f"{share:.0%}" for name, share in known.shares.items()}
    return [
        f"{known.entropy:.3f}",
        f"{shares['step']} ({known.step:.3f}, {known.step_baseline:.3f})",
        f"{shares['token']} ({known.token:.3f}, {known.token_baseline:.3f})",
        shares["context"],
    ]


def _depth(run: Run, records: Records) -> list[str]:
    found = [(phase, record) for phase, record in records if table_of(record, "depth", "histogram")]
    churn = {side: over_training(run, records, "churn", side) for side in SIDES}
    if not found and not any(steps for steps, _ in churn.values()):
        return []
    parts = ["<h2>Effective depth and churn</h2>"]
    words = []
    if found:
        phase, last = found[-1]
        d = last["depth"]
        words.append(
            f"Left: modules that a token takes over all steps of both sides, after {last['step']:,} steps of {phase}: "
            f"{d['mean']:.2f} on average, {d['min']} to {d['max']}."
        )
    if any(steps for steps, _ in churn.values()):
        words.append("Churn: best choices on a fixed text that differ from those at the record before.")
    parts.append(
        pictures.embedded(10, 2.9, lambda f, t: insight_pictures.depth(run, found, churn, f, t), " ".join(words))
    )
    return parts
