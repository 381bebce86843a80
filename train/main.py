"""Trains a configuration: `python -m train.main --config configs/quickstart.py [--model.top-k 2 ...]`.

Running the same command again resumes it.
"""

import argparse
import signal
from collections.abc import Sequence

from train import distributed
from train.cli import parse_config, run_program
from train.dry_run import dry_run
from train.loop import parse_profile, train


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m train.main", description=__doc__, add_help=False, allow_abbrev=False)
    parser.add_argument("--dry-run", action="store_true", help="show sizes and the first batch; train nothing")
    parser.add_argument("--profile", metavar="A:B", help="write a jax.profiler trace of steps A to B")
    distributed.add_flags(parser)
    own, config = parse_config(parser, arguments)
    profile = parse_profile(own.profile) if own.profile else None
    distributed.join(own)
    if own.dry_run:
        dry_run(config)
        return 0
    stopped = train(config, profile=profile)
    if stopped is None:
        return 0
    if distributed.is_first():
        print(f"stopped by {signal.Signals(stopped).name}; everything is saved: the same command goes on from here")
    return 0 if stopped == signal.SIGTERM else 128 + stopped


if __name__ == "__main__":
    run_program(main)
