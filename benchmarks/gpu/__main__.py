"""Runs the sections one after the other, passes their lines on, and makes tables of lines.

python -m benchmarks.gpu --out lines.jsonl; python -m benchmarks.gpu --table lines.jsonl
"""

import argparse
import json
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from benchmarks.gpu import process
from benchmarks.gpu.table import table
from benchmarks.measuring import timing


class Parser(argparse.ArgumentParser):
    """Wrong flags are answered in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}\n")


def seconds(text: str) -> float:
    """An argparse type: a number of seconds above 0."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def read(file: Path) -> list[dict[str, Any]]:
    """The lines of a file. Raises ValueError where one is not of this program."""
    lines = [json.loads(line) for line in file.read_text().splitlines() if line.strip()]
    for number, line in enumerate(lines, 1):
        if not isinstance(line, dict) or line.get("section") not in process.LIMITS:
            raise ValueError(f"line {number} is not one of this program")
    return lines


def run_all(sections: tuple[str, ...], small: bool, limit: float | None, cache: str) -> Iterator[dict[str, Any]]:
    """The lines of all sections. limit: seconds for each, instead of its own and what is left over."""
    environment, begin, allotted = process.environment(cache), time.monotonic(), 0.0
    for section in sections:
        allotted += process.LIMITS[section]
        own = allotted - (time.monotonic() - begin) if limit is None else limit
        yield from process.run(section, small, own, environment)


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python -m benchmarks.gpu", description=(__doc__ or "").split("\n\n")[0], allow_abbrev=False)
    names = tuple(process.LIMITS)
    parser.add_argument("--small", action="store_true", help="toy sizes, on a CPU too, to see that it runs")
    parser.add_argument("--only", type=timing.some_of(names), default=names, help=f"some of {','.join(names)}")
    parser.add_argument("--out", type=Path, metavar="FILE", help="a file to which every line is appended")
    parser.add_argument("--limit", type=seconds, metavar="SECONDS", help="for each section, instead of its own limit")
    parser.add_argument("--table", type=Path, metavar="FILE", help="print the lines of FILE as tables; runs nothing")
    parser.add_argument("--section", choices=names, help=argparse.SUPPRESS)
    flags = parser.parse_args(argv)
    if flags.section:
        return process.work(flags.section, flags.small)
    try:
        if flags.table:
            print(table(read(flags.table)))
            return 0
        out = flags.out and flags.out.open("a")
    except (OSError, ValueError) as error:
        parser.error(f"--table {flags.table}: {error}" if flags.table else f"--out {flags.out}: {error}")
    problems = []
    with tempfile.TemporaryDirectory() as cache:
        for line in run_all(flags.only, flags.small, flags.limit, cache):
            text = json.dumps(line, allow_nan=False)
            print(text, flush=True)
            if out:
                print(text, file=out, flush=True)
            if line.get("failed") or line.get("wrong"):
                problems.append(line["section"])
    if out:
        out.close()
    for section in dict.fromkeys(problems):
        print(f"{section} has failed in part or in whole: its lines say why", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    # So that a section's process ends with this one.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    sys.exit(main())
