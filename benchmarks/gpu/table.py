"""Tables in Markdown out of the lines of `python -m benchmarks.gpu`."""

from typing import Any

# The columns of each section's tables: (title, the key that makes a line one of this table, columns).
TABLES: dict[str, list[tuple[str, str, tuple[str, ...]]]] = {
    "card": [
        ("The card", "threads", ("device", "capability", "memory_bytes", "versions")),
        ("Its ceilings: copies", "copy_bytes_per_second", ("copy_bytes_per_second",)),
        ("Its ceilings: products", "product_flops", ("product_size", "product_flops")),
    ],
    "products": [("Routed products", "backend", ("backend", "dtype", "worst_error", "allowed", "wrong", "refused"))],
    "attention": [
        ("Attention", "backend", ("backend", "dtype", "worst_error", "allowed", "wrong", "refused", "packed_seconds")),
    ],
    "step": [
        (
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
                "temp_bytes",
                "peak_bytes",
                "vanilla_over_hf",
            ),
        )
    ],
    "grouped": [
        (
            "Grouped products over one dense product of the same rows",
            "backend",
            ("backend", "rows", "modules", "shape", "forward", "rows' gradient", "weights' gradient"),
        ),
        ("Tiles", "tiles", ("tiles", "blocks", "forward TFLOP/s", "weights' gradient TFLOP/s", "refused")),
    ],
    "decoding": [
        ("Decoding", "model", ("model", "batch", "tokens_per_second", "step_seconds", "weight_bytes_per_step"))
    ],
    "remat": [("What the backward pass keeps", "model", ("model", "policy", "milliseconds", "temp_bytes"))],
}


def table(lines: list[dict[str, Any]]) -> str:
    """All sections, in order; one without lines has dashes, one that failed says why."""
    parts = []
    for section, tables in TABLES.items():
        own = [line for line in lines if line.get("section") == section]
        about = sorted({str(line["device"]) for line in own if "device" in line})
        small = any(line.get("small") for line in own)
        for title, key, columns in tables:
            found = [line for line in own if key in line] or [{}]
            parts.append(f"**{title}** ({', '.join(about) or 'not run'}{', toy sizes' if small else ''})\n")
            parts.append("| " + " | ".join(name.replace("_", " ") for name in columns) + " |")
            parts.append("|" + "---|" * len(columns))
            parts += ["| " + " | ".join(_cell(line.get(name)) for name in columns) + " |" for line in found]
            parts.append("")
        parts += [f"{section} failed: {line['failed']}\n" for line in own if "failed" in line]
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
