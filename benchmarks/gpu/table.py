"""Tables in Markdown out of the lines of `python -m benchmarks.gpu`."""

from collections.abc import Iterable
from typing import Any, NamedTuple


class Table(NamedTuple):
    """key: what a line of this table has. columns: the keys whose values are shown, if any line has them."""

    title: str
    key: str
    columns: tuple[str, ...]


TABLES: dict[str, list[Table]] = {
    "card": [
        Table("The card", "capability", ("device", "capability", "memory_bytes", "published", "platform", "versions")),
        Table("Copies", "copy_bytes_per_second", ("copy_bytes_per_second",)),
        Table("A dense bfloat16 product", "product_flops", ("product_size", "product_flops")),
    ],
    "products": [
        Table(
            "Routed products: the largest error, ‖out − ref‖ / ‖ref‖",
            "backend",
            ("backend", "dtype", "worst_error", "worst_beside_dense", "allowed", "wrong", "refused", "failed"),
        )
    ],
    "attention": [
        Table(
            "Attention: the largest error",
            "checked",
            ("backend", "dtype", "worst_error", "allowed", "checked", "wrong", "refused", "failed"),
        ),
        Table("Attention: forward and backward pass", "timed", ("backend", "timed", "milliseconds", "TFLOP/s")),
    ],
    "step": [
        Table("Compiled steps", "program", ("program", "temp_bytes", "temp_over_vanilla", "compile_seconds")),
        Table(
            "The train step",
            "model",
            (
                "model",
                "adamw",
                "milliseconds",
                "tokens_per_second",
                "mfu",
                "mfu_of_seen",
                "over_vanilla",
                "flops_over_vanilla",
                "over_flops",
                "over_active_flops",
                "vanilla_over_this",
                "temp_bytes",
                "total_bytes",
                "peak_bytes",
            ),
        ),
    ],
    "grouped": [
        Table(
            "Grouped products over one dense product of the same rows",
            "backend",
            (
                "backend",
                "rows",
                "modules",
                "shape",
                "forward",
                "rows' gradient",
                "weights' gradient",
                "linear",
                "linear's gradients",
                "forward TFLOP/s",
                "weights' gradient TFLOP/s",
            ),
        ),
        Table("Tiles", "tiles", ("tiles", "direction", "rows", "blocks", "TFLOP/s", "refused")),
    ],
    "decoding": [
        Table("Decoding", "model", ("model", "batch", "tokens_per_second", "step_seconds")),
        Table(
            "Decoding: ratios of speeds",
            "pair",
            ("pair", "batch", "ratio", "quartiles"),
        ),
    ],
    "remat": [
        Table("What the backward pass keeps", "policy", ("model", "policy", "milliseconds", "over_none", "temp_bytes"))
    ],
}


def last_runs(lines: Iterable[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The lines of each section's last run: a run ends with the line that has its `seconds`."""
    runs: dict[str, list[dict[str, Any]]] = {}
    ended = set()
    for line in lines:
        section = line["section"]
        if section in ended:
            ended.discard(section)
            runs[section] = []
        runs.setdefault(section, []).append(line)
        if "seconds" in line:
            ended.add(section)
    return runs


def table(lines: Iterable[dict[str, Any]]) -> str:
    """All sections, in order, each by its last run; what was not measured is dashes, and what failed says why."""
    runs, parts = last_runs(lines), []
    for section, tables in TABLES.items():
        own = runs.get(section, [])
        cards = sorted({str(line["device"]) for line in own if line.get("device")})
        small = any(line.get("small") for line in own)
        for title, key, columns in tables:
            found = [line for line in own if key in line] or [{}]
            # Columns that nobody has are left out, unless there is nothing at all.
            shown = [name for name in columns if any(line.get(name) not in (None, []) for line in found)] or columns
            parts.append(f"**{title}** ({', '.join(cards) or 'not run'}{', toy sizes' if small else ''})\n")
            parts.append("| " + " | ".join(name.replace("_", " ") for name in shown) + " |")
            parts.append("|" + "---|" * len(shown))
            parts += ["| " + " | ".join(_cell(line.get(name)) for name in shown) + " |" for line in found]
            parts.append("")
        parts += [f"{section} failed: {_cell(line['failed'])}\n" for line in own if line.get("failed")]
    return "\n".join(parts).rstrip()


def _cell(value: Any) -> str:
    if value is None or value == []:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_cell(item)}" for name, item in value.items() if item is not None)
    if isinstance(value, list):
        return "; ".join(map(_cell, value))
    return str(value).replace("|", "/").replace("\n", " ")
