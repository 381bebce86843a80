"""The page of the campaign's results."""

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("results.jsonl")
PAGE = Path(__file__).parents[3] / "docs" / "faults.md"
HEAD = """# Faults

`make faults` does each of these faults to a run in progress, or to what a program reads, gives the same command again
until the run is done, and compares its parameters, optimizer and log with an uninterrupted run's, bit for bit. This
page is made by it; what programs do about faults is in [What happens when something fails](reliability.md).

*Steps lost* were done before the fault and done again after it, the same steps with the same data: the average, and
the most. *Data* are the steps with other examples than in the uninterrupted run, too many or too few. *Silent* are the
faults that changed a result without a word. *Failed* are those that did not go as the column before it says.

"""
COLUMNS = "| fault | times | what happened | steps lost | data | silent | failed |\n|---|---|---|---|---|---|---|\n"

Row = dict[str, Any]


def read(file: Path) -> list[Row]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def put(new: list[Row], *, whole: bool) -> None:
    """Results in the place of those of the same jobs, or of all."""
    jobs = {row["job"] for row in new}
    old = [] if whole else read(RESULTS)
    first = next((i for i, row in enumerate(old) if row["job"] in jobs), len(old))
    kept = [row for row in old if row["job"] not in jobs]
    rows = [*kept[:first], *new, *kept[first:]]
    RESULTS.write_text("".join(json.dumps(row) + "\n" for row in rows))


def page(rows: list[Row]) -> str:
    """The tables, a group each."""
    parts = [HEAD, summary(rows), "\n"]
    for group in dict.fromkeys(row["group"] for row in rows):
        parts += [f"\n## {group}\n\n", COLUMNS]
        mine = [row for row in rows if row["group"] == group]
        for kind in dict.fromkeys(row["kind"] for row in mine):
            parts.append(_line(kind, [row for row in mine if row["kind"] == kind]))
    return "".join(parts)


def _line(kind: str, rows: list[Row]) -> str:
    happened = [row["happened"] for row in rows]
    counts = {what: happened.count(what) for what in dict.fromkeys(happened)}
    text = "; ".join(what if len(counts) == 1 else f"{count}x {what}" for what, count in counts.items())
    lost = [row["steps_lost"] for row in rows]
    average = f"{sum(lost) / len(lost):.1f}".removesuffix(".0")
    steps = average if max(lost) == min(lost) else f"{average}, at most {max(lost)}"
    return (
        f"| {kind} | {len(rows)} | {text} | {steps} | {_sum(rows, 'data')} | {_sum(rows, 'silent')} | {_bad(rows)} |\n"
    )


def _sum(rows: list[Row], name: str) -> str:
    return str(sum(row[name] for row in rows) or "none")


def _bad(rows: list[Row]) -> str:
    return str(sum(bool(row["wrong"]) for row in rows) or "none")


def summary(rows: list[Row]) -> str:
    kinds = len({(row["group"], row["kind"]) for row in rows})
    sums = f"data lost or repeated in {_sum(rows, 'data')}, silent {_sum(rows, 'silent')}, failed {_bad(rows)}"
    return f"{len(rows)} faults of {kinds} kinds: {sums}.\n"
