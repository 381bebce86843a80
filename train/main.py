"""Trains a configuration: `python -m train.main --config quickstart [--model.top-k 2 ...]`.

Running the same command again resumes it.
"""

import signal
from collections.abc import Sequence

from train.cli import Parser, add_process_flags, run_program
from train.parse import parse_config


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser("python -m train.main", description=__doc__, add_help=False, allow_abbrev=False)
    parser.add_argument("--dry-run", action="store_true", help="show sizes and the first batch; train nothing")
    parser.add_argument("--profile", metavar="A:B", help="write a jax.profiler trace of steps A to B")
    parser.add_argument(
        "--debug-checks", action="store_true", help="check values inside every step; slow, for finding faults"
    )
    text = "the same bits every time on GPUs too, where sums are otherwise made in any order; slower there"
    parser.add_argument("--deterministic", action="store_true", help=text)
    add_process_flags(parser)
    own, config = parse_config(parser, arguments)

    from train.steps.numbers.determinism import make_deterministic
    from train.training import processes
    from train.training.dry_run import dry_run
    from train.training.loop import train
    from train.training.profile import parse_profile

    if own.deterministic:
        make_deterministic()
    profile = parse_profile(own.profile) if own.profile else None
    processes.join(own)
    if own.dry_run:
        dry_run(config)
        return 0
    stopped = train(config, profile=profile, debug_checks=own.debug_checks)
    if stopped is None:
        return 0
    if processes.is_first():
        print(f"stopped by {signal.Signals(stopped).name}; everything is saved: the same command goes on from here")
    return 0 if stopped == signal.SIGTERM else 128 + stopped


if __name__ == "__main__":
    run_program(main)
