"""Tables as Markdown and as HTML, with numbers as mean ± standard deviation."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

# Of a record: the key, the title, and how a value is written.
Column = tuple[str, str, str]


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column is left-aligned and whose others are right-aligned, columns of even width."""
    widths = [max(3, *(len(row[i]) for row in (header, *rows))) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |"

    rule = ["-" * width if i == 0 else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    return "\n".join([line(header), line(rule), *(line([_plain(cell) for cell in row]) for row in rows)]) + "\n"


def _plain(text: str) -> str:
    """Text that does not end a cell."""
    return " ".join(text.replace("|", "/").split())


def spread(statistics: Mapping[str, Any] | None) -> str:
    """`84.12 ± 0.31`; only the mean where there is no deviation; a dash where there is nothing."""
    if statistics is None:
        return "-"
    deviation = statistics["deviation"]
    return f"{statistics['mean']:.2f}" + ("" if deviation is None else f" ± {deviation:.2f}")


def as_html(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same as HTML, in a box that scrolls where it is too wide. A line break in the header is one there."""
    head = "".join(f'<th scope="col">{html.escape(cell).replace(chr(10), "<br>")}</th>' for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="table"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def columns_as_html(columns: Sequence[Column], rows: Sequence[Mapping[str, Any]]) -> str:
    """A table of records; a dash where a value is None."""
    header = [title for _, title, _ in columns]
    body = [["–" if row[key] is None else form.format(row[key]) for key, _, form in columns] for row in rows]
    return as_html(header, body)
