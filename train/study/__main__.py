"""Runs a study: `python -m train.study configs/studies/NAME.py [--size full] [--shard 1/4] [--only 'K=*']`.

Trains every arm with every seed, and writes results, a table and pictures to OUT/NAME-SIZE. Running the same command
again goes on where it ended, within a run too. docs/studies.md
"""

import argparse
import fnmatch
import signal
from collections.abc import Sequence
from pathlib import Path

from mom_jax.fields import ConfigError, nearest, require
from train.cli import Parser, add_process_flags, called, notify, run_program
from train.flags.completion import complete, complete_names
from train.study.definition import load_study
from train.study.listing import listing
from train.study.measure import measure
from train.study.plan import Plan, dealt, make_plan
from train.study.records import check_study, forget, keep_programs, write_study
from train.study.running import check_needs, check_sources, run_all
from train.study.table import against, write_table
from train.training import processes


def main(arguments: Sequence[str] | None = None) -> int:
    flags = _flags(arguments)
    study = load_study(flags.study)
    plan = make_plan(study, flags.size or next(iter(study.base)), Path(flags.out).expanduser())
    arms = _chosen([arm.name for arm in study.arms], flags.only)
    runs = dealt([run for run in plan.runs if run.arm in arms], flags.shard)
    require(flags.rounds >= 1, "rounds", flags.rounds, "must be at least 1")
    modes = [name for name in ("dry_run", "measure", "table", "fresh") if getattr(flags, name)]
    require(len(modes) <= 1, "flags", modes, "one of these at a time")
    require(not (flags.fresh and flags.shard), "fresh", True, "not with --shard: another shard's runs would go too")
    require(flags.against is None or flags.table, "against", flags.against, "goes with --table")
    if flags.table:
        print(write_table(plan) if flags.against is None else against(plan, flags.against))
        return 0
    if not flags.fresh:
        check_study(plan)
    if flags.dry_run:
        if study.after:
            check_needs(study)  # whether a task is done is told by what its file has
        print(listing(plan, runs))
        return 0
    check_needs(study)
    check_sources(runs)
    for task in study.after:
        task.settings()  # which says what it lacks before hours of training, not after
    processes.join(flags)
    keep_programs(plan)
    if flags.measure:
        measure(plan, arms, flags.rounds, notify)
        print(write_table(plan))
        return 0
    return _train(plan, arms, runs, fresh=flags.fresh)


def _train(plan: Plan, arms: Sequence[str], runs: list, *, fresh: bool) -> int:
    if processes.is_first():
        if fresh:
            forget(plan, arms)
        write_study(plan)
    processes.wait_for_all("start of the study")
    say = notify if processes.is_first() else (lambda text: None)
    stopped = run_all(plan, runs, say, anew=fresh)
    if processes.is_first():
        text = write_table(plan)
        if stopped is None:
            print(text)
            notify(f"written: {plan.folder}")
        else:
            name = signal.Signals(stopped).name
            print(f"stopped by {name}; everything is saved: the same command goes on from here")
    return 0 if stopped in (None, signal.SIGTERM) else 128 + stopped


def _flags(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(called("python -m train.study"), description=called(__doc__ or ""), allow_abbrev=False)
    text = "a Python file with get_study(), or the name of a study that comes with mom_jax"
    complete_names(parser.add_argument("study", metavar="FILE", help=text), "get_study")
    parser.add_argument("--size", help="small, full, or what else the study has; by default its first")
    parser.add_argument("--out", default="runs/studies", metavar="FOLDER", help="of all studies (%(default)s)")
    parser.add_argument("--only", metavar="PATTERN", help="arms by name, * and ? allowed, with commas between")
    parser.add_argument("--shard", metavar="I/N", help="the I-th of N parts of the runs, I from 1 to N")
    parser.add_argument("--dry-run", action="store_true", help="list the runs, their state and hours; do nothing")
    parser.add_argument("--fresh", action="store_true", help="forget what there is of these arms, and begin anew")
    parser.add_argument("--measure", action="store_true", help="measure the arms' speed and memory; train nothing")
    parser.add_argument("--rounds", type=int, default=7, help="steps of each arm that --measure times (%(default)s)")
    parser.add_argument("--table", action="store_true", help="make table and pictures again from the results")
    text = "with --table: only print it, with differences to this arm instead of the baseline"
    parser.add_argument("--against", metavar="ARM", help=text)
    add_process_flags(parser)
    complete(lambda: parser)
    return parser.parse_args(arguments)


def _chosen(names: Sequence[str], patterns: str | None) -> list[str]:
    """Raises ConfigError for a pattern that no arm has."""
    if patterns is None:
        return list(names)
    chosen: set[str] = set()
    for pattern in patterns.split(","):
        # An arm's own name may have commas and brackets.
        found = [patterns] if patterns in names else fnmatch.filter(names, pattern.strip())
        if not found:
            raise ConfigError(f"only={pattern.strip()!r}: no such arm; {nearest(pattern.strip(), names)}")
        chosen.update(found)
    return [name for name in names if name in chosen]


if __name__ == "__main__":
    run_program(main)
