"""Writes the report of a run: `python -m train.report RUN` makes `RUN/report.html`."""

import json
from collections.abc import Sequence
from pathlib import Path

from train.cli import Parser, called, run_program
from train.flags.completion import complete


def main(arguments: Sequence[str] | None = None) -> int:
    """The program; returns its exit code."""
    parser = Parser(prog=called("python -m train.report"), description="Writes a run's report.html.")
    parser.add_argument("run", type=Path, metavar="RUN", help="the run's folder")
    parser.add_argument("--json", action="store_true", help="print the summary table as JSON, write nothing")
    help = "another run, whose routes stand beside this one's in the routing explorer"
    parser.add_argument("--against", type=Path, metavar="RUN2", help=help)
    complete(lambda: parser)
    flags = parser.parse_args(arguments)

    from train.reporting.page import summary, write_report

    print(json.dumps(summary(flags.run), allow_nan=False) if flags.json else write_report(flags.run, flags.against))
    return 0


if __name__ == "__main__":
    run_program(main)
