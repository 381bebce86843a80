"""Tables of results: as JSON and Markdown files."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from train.files import write_whole, writing


def markdown(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table whose columns are aligned; the first to the left, the others to the right."""
    texts = [list(headers), *([str(cell) for cell in row] for row in rows)]
    widths = [max(3, *(len(row[i]) for row in texts)) for i in range(len(headers))]
    head, *body = (
        [row[0].ljust(widths[0])] + [c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)] for row in texts
    )
    rule = ["-" * widths[0]] + ["-" * (width - 1) + ":" for width in widths[1:]]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, rule, *body))


def write(output: Path, name: str, record: Any, text: str) -> None:
    """Writes `output/name.json` and `output/name.md`, each whole. Raises ConfigError where that cannot be done."""
    with writing(output):
        output.mkdir(parents=True, exist_ok=True)
        write_whole(output / f"{name}.json", (json.dumps(record, indent=1) + "\n").encode())
        write_whole(output / f"{name}.md", (text.rstrip() + "\n").encode())
