"""Tables as Markdown and as HTML, with numbers as mean ± standard deviation."""

import html
import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

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


def spread(record: Mapping[str, Any] | None) -> str:
    """`84.12 ± 0.31`; only the mean where there is no deviation; a dash where there is nothing."""
    return "-" if record is None else _with_deviation(record["mean"], record["deviation"], 2)


def spread_of(values: Sequence[float], digits: int, sign: Literal["", "+"] = "") -> str:
    """The same of the values themselves (deviation: n - 1); without a deviation where one of them is infinite."""
    if not values:
        return "-"
    finite = len(values) > 1 and all(map(math.isfinite, values))
    return _with_deviation(statistics.fmean(values), statistics.stdev(values) if finite else None, digits, sign)


def _with_deviation(mean: float, deviation: float | None, digits: int, sign: Literal["", "+"] = "") -> str:
    return f"{mean:{sign}.{digits}f}" + ("" if deviation is None else f" ± {deviation:.{digits}f}")


def as_html(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same as HTML, in a box that scrolls where it is too wide. A line break in the header is one there."""
    head = "".join(f'<th scope="col">{html.escape(cell).replace(chr(10), "<br>")}</th>' for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="table"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def columns_as_html(
    columns: Sequence[Column], rows: Sequence[Mapping[str, Any]], zero_is_nothing: Collection[str]
) -> str:
    """A table of records, without the columns in which there is nothing; a dash where a value is None.

    zero_is_nothing: keys of what needs no column if it never happened.
    """
    nothing = {key: (None, 0) if key in zero_is_nothing else (None,) for key, _, _ in columns}
    shown = [column for column in columns if any(row[column[0]] not in nothing[column[0]] for row in rows)]
    header = [title for _, title, _ in shown]
    body = [["–" if row[key] is None else form.format(row[key]) for key, _, form in shown] for row in rows]
    return as_html(header, body)
