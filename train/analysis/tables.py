"""The figures of analysed checkpoints as Markdown."""

import itertools
from collections.abc import Sequence
from typing import Any

from mom_jax.config import SIDES
from train.analysis import prune_curve
from train.analysis.program import Analysed
from train.reporting.tables import markdown


def tables(analysed: Sequence[Analysed]) -> str:
    """All tables, the checkpoints side by side where they fit, then each one's own."""
    parts = ["# Analysis", _overview(analysed), "## Similarity of modules", _similarity(analysed)]
    routed = [own for own in analysed if own.found.routes.sides]
    if routed:
        parts += ["## What the choices depend on", _dependence(routed)]
    for own in routed:
        title = f" of {own.name}" if len(analysed) > 1 else ""
        parts += [f"## Usage by step{title}", _usage(own), f"## Most frequent paths{title}", _paths(own)]
        for kind, classes in own.record["token_classes"].items():
            parts += [f"## Usage by {kind} of the token{title}", _classes(own, classes)]
    for own in routed:
        if own.curve is not None:
            title = f" of {own.name}" if len(analysed) > 1 else ""
            parts += [f"## Modules removed{title}", prune_curve.table(own.curve)]
    curves = [own.curve for own in routed if own.curve is not None]
    if prune_curve.alike(curves):
        title = f"## Modules removed, mean ± standard deviation of the {len(curves)} checkpoints"
        parts += [title, prune_curve.mean_table(curves)]
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


def _overview(analysed: Sequence[Analysed]) -> str:
    header = (
        "checkpoint",
        "tokens",
        "nats/token",
        "modules per token",
        "from",
        "to",
        "paths",
        "entropy of paths, nats",
    )
    rows = []
    for own in analysed:
        record, deep, taken = own.record, own.record.get("depth"), own.record.get("paths")
        rows.append(
            (
                *(own.name, f"{record['tokens']:,}", _number(record["loss"], 4)),
                *(("-", "-", "-") if deep is None else (f"{deep['mean']:.2f}", str(deep["min"]), str(deep["max"]))),
                *(("-", "-") if taken is None else (f"{taken['distinct']:,}", f"{taken['entropy']:.3f}")),
            )
        )
    lines = [markdown(header, rows)]
    for before, after in itertools.pairwise(analysed):
        if (shares := after.record.get("differs_from_the_one_before")) is not None:
            text = ", ".join(f"{100 * share:.1f} % of the best choices of {side}" for side, share in shares.items())
            lines.append(f"On the same tokens {after.name} differs from {before.name} in {text}.")
    return "\n".join(lines)


def _similarity(analysed: Sequence[Analysed]) -> str:
    header = ("checkpoint", "side", "weights, cosine", "outputs, CKA", "attention patterns")
    rows = []
    for own in analysed:
        for side, record in own.record["similarity"].items():
            figures = (_number(record.get(name), 3) for name in ("weights", "outputs", "attention_patterns"))
            rows.append((own.name, side, *figures))
    return "Means over pairs of modules of one pool; 1 is alike.\n\n" + markdown(header, rows)


def _dependence(routed: Sequence[Analysed]) -> str:
    header = (
        "checkpoint",
        "side",
        "entropy",
        "step",
        "by chance",
        "token",
        "by chance",
        "context",
        "step : token : context",
    )
    rows = []
    for own in routed:
        for side, found in own.found.dependence.items():
            figures = (found.entropy, found.step, found.step_baseline, found.token, found.token_baseline, found.context)
            shares = " : ".join(f"{100 * share:.0f} %" for share in found.shares.values())
            rows.append((own.name, side, *(f"{value:.3f}" for value in figures), shares if found.entropy else "-"))
    return "Of the best choice, nats; the shares are without what is there by chance.\n\n" + markdown(header, rows)


def _usage(own: Analysed) -> str:
    rows = []
    for side in SIDES:
        for step, shares in enumerate(own.record["usage"].get(side, [])):
            rows.append((f"{side} {step}", *(f"{100 * share:.1f} %" for share in shares)))
    return _with_modules("step", rows)


def _with_modules(first: str, rows: list[tuple[str, ...]]) -> str:
    """A table whose columns are modules; sides with fewer of them have dashes, and the nulls are last."""
    most = max(len(row) for row in rows) - 2
    filled = [(*row[:-1], *["-"] * (most + 2 - len(row)), row[-1]) for row in rows]
    return markdown((first, *(f"module {i}" for i in range(most)), "null"), filled)


def _paths(own: Analysed) -> str:
    found = own.record["paths"]
    sides = found["sides"]
    steps = own.found.routes.steps
    rows = []
    for path in found["top"]:
        names = ["-" if choice is None else str(choice) for choice in path["choices"]]
        cells = ("/".join(names[i * len(sides) : (i + 1) * len(sides)]) for i in range(steps))
        rows.append((" ".join(cells), f"{path['count']:,}", f"{100 * path['share']:.2f} %"))
    note = f"Best choices at each step ({'/'.join(sides)}); - is a null."
    return f"{note}\n\n{markdown(('path', 'tokens', 'share'), rows)}"


def _classes(own: Analysed, classes: dict[str, dict[str, Any]]) -> str:
    sides = [side for side in SIDES if side in own.found.routes.sides]
    header = ["tokens of", "tokens", "nats/token", "modules per token"]
    for side in sides:
        modules = own.found.routes.sides[side].modules
        header += [f"{side} {i}" for i in range(modules)] + [f"{side} null"]
    rows = []
    for name, row in classes.items():
        shares = (f"{100 * share:.1f} %" for side in sides for share in row[side])
        rows.append((name, f"{row['tokens']:,}", _number(row["loss"], 3), f"{row['depth']:.2f}", *shares))
    return markdown(header, rows)


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
