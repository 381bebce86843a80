"""Runs a study on one accelerator from one file of tokens, in a given time:

    python -m train.study.packed configs/studies/main_gpu.py --pack tokens.bin
    python -m train.study.packed configs/studies/main_gpu.py --tokens tokens.bin --out FOLDER --seconds 540

The first makes the file and needs all of the project's packages; the second needs jax, flax, optax, chex and numpy. It
prints the line of every finished run, and adds it to FOLDER/NAME-SIZE/results.jsonl. The same command goes on where it
ended. docs/studies.md
"""

import argparse
import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax

from mom_jax.fields import MOST, require
from train.cli import Parser, notify, run_program
from train.config import Config
from train.study.changes import changed
from train.study.definition import Study, load_study
from train.study.packed.program import Program, alone, planned
from train.study.packed.sizing import SIZING
from train.study.packed.tokens import open_tokens
from train.study.records import forget, keep_programs

START = time.monotonic()


def main(arguments: Sequence[str] | None = None) -> int:
    begin = START if arguments is None else time.monotonic()
    flags = _flags(arguments)
    study = load_study(flags.study)
    size = flags.size or next(iter(study.base))
    require((flags.pack is None) != (flags.tokens is None), "flags", ["pack", "tokens"], "one of the two")
    require(size in study.base, "size", size, f"unknown; there are {', '.join(study.base)}")
    if flags.pack is not None:
        return _pack(flags, study.base[size])
    require(flags.seconds is None or flags.seconds > 0, "seconds", flags.seconds, "must be above 0")
    tokens = open_tokens(Path(flags.tokens).expanduser())
    kernels = {"model.dispatch": flags.dispatch, "model.attention_kernel": flags.attention_kernel}
    study = _with_kernels(study, size, {name: value for name, value in kernels.items() if value is not None})
    plan = planned(study, size, Path(flags.out).expanduser(), tokens)
    with alone(plan):
        if flags.fresh:
            forget(plan, list(plan.configs))
            (plan.folder / SIZING).unlink(missing_ok=True)
        keep_programs(plan)
        notify(f"{jax.devices()[0].device_kind}, jax {jax.__version__}: {tokens.describe()}")
        deadline = None if flags.seconds is None else begin + flags.seconds
        program = Program(plan, tokens, deadline, notify, lambda line: print(line, flush=True))
        left = program.run()
    notify(f"{left} runs are left" if left else f"all runs are finished: {plan.folder}")
    return 1 if left else 0


def _pack(flags: argparse.Namespace, config: Config) -> int:
    from train.study.packed.pack import pack  # and sentencepiece, which the other machine does not need

    require(0 < flags.megabytes < MOST / 1e6, "megabytes", flags.megabytes, f"must lie between 0 and {MOST / 1e6:.0f}")
    data = config.data if flags.source is None else dataclasses.replace(config.data, source=flags.source)
    file = Path(flags.pack).expanduser()
    found = pack(data, int(flags.megabytes * 1e6), file, notify)
    print(f"{file}: {file.stat().st_size / 1e6:.1f} MB, {found.describe()}")
    return 0


def _with_kernels(study: Study, size: str, kernels: Mapping[str, str]) -> Study:
    """With other backends than the study's, for all arms."""
    return dataclasses.replace(study, base={size: changed(study.base[size], kernels)})


def _flags(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        "python -m train.study.packed",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("study", metavar="FILE", help="a Python file with get_study()")
    parser.add_argument("--size", help="what the study has; by default its first")
    parser.add_argument("--pack", metavar="TOKENS", help="make the file of tokens; train nothing")
    parser.add_argument("--source", help="with --pack: the data, in place of the study's (docs/data.md)")
    parser.add_argument("--megabytes", type=float, default=50, help="with --pack: at most (%(default)s)")
    parser.add_argument("--tokens", metavar="TOKENS", help="the file of tokens")
    parser.add_argument("--out", default="runs/studies", metavar="FOLDER", help="of all studies (%(default)s)")
    parser.add_argument(
        "--seconds",
        type=float,
        help="how long all of it may take: as many steps are trained as fit; by default the study's own",
    )
    parser.add_argument("--dispatch", help="the backend of routed products, in place of the study's (docs/gpu.md)")
    parser.add_argument("--attention-kernel", help="the backend of attention, in place of the study's")
    parser.add_argument("--fresh", action="store_true", help="forget what there is of the study, and begin anew")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run_program(main)
