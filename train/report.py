"""Writes the report of a run: `python -m train.report RUN` makes `RUN/report.html`; of several runs a comparison."""

import json
from collections.abc import Sequence
from pathlib import Path

from train.cli import Parser, called, run_program
from train.flags.completion import complete


def main(arguments: Sequence[str] | None = None) -> int:
    """The program; returns its exit code."""
    what = "Writes a run's report.html; of several runs a page that compares them."
    parser = Parser(prog=called("python -m train.report"), description=what)
    parser.add_argument("run", type=Path, nargs="+", metavar="RUN", help="the run's folder; or several, to be compared")
    parser.add_argument("--json", action="store_true", help="print the tables as JSON, write nothing")
    help = "another run, whose routes stand beside this one's in the routing explorer"
    parser.add_argument("--against", type=Path, metavar="RUN2", help=help)
    help = "of several runs: the page to write (default: comparison.html in the first one's folder)"
    parser.add_argument("--output", type=Path, metavar="FILE", help=help)
    complete(lambda: parser)
    flags = parser.parse_args(arguments)

    from mom_jax.fields import require

    if len(flags.run) > 1:
        from train.reporting.comparison.page import compare, write_comparison

        require(flags.against is None, "against", str(flags.against), "is for the report of one run")
        print(
            json.dumps(compare(flags.run), allow_nan=False) if flags.json else write_comparison(flags.run, flags.output)
        )
    else:
        from train.reporting.page import summary, write_report

        require(flags.output is None, "output", str(flags.output), "is for several runs: one's report is in its folder")
        [run] = flags.run
        print(json.dumps(summary(run), allow_nan=False) if flags.json else write_report(run, flags.against))
    return 0


if __name__ == "__main__":
    run_program(main)
