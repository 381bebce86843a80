"""Writes the report of a run: `python -m train.report RUN` makes `RUN/report.html`."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from mom_jax.fields import ConfigError
from train.cli import called
from train.flags.completion import complete


def main(arguments: Sequence[str] | None = None) -> int:
    """The program; returns its exit code."""
    parser = argparse.ArgumentParser(prog=called("python -m train.report"), description="Writes a run's report.html.")
    parser.add_argument("run", type=Path, metavar="RUN", help="the run's folder")
    parser.add_argument("--json", action="store_true", help="print the summary table as JSON, write nothing")
    help = "another run, whose routes stand beside this one's in the routing explorer"
    parser.add_argument("--against", type=Path, metavar="RUN2", help=help)
    complete(lambda: parser)
    flags = parser.parse_args(arguments)

    from train.reporting.page import summary, write_report

    try:
        print(json.dumps(summary(flags.run)) if flags.json else write_report(flags.run, flags.against))
    except (FileNotFoundError, NotADirectoryError, ConfigError) as error:
        text = f"{error.filename}: no such file" if isinstance(error, OSError) else str(error)
        print(f"error: {text}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
