"""What the programs have in common: flags, and errors as one line with exit code 2."""

import argparse
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tyro

from mom_jax.fields import ConfigError
from train.config import Config
from train.numbers import NumbersError
from train.steps.memory import keep_freed_memory


def run_program(main: Callable[[], int]) -> None:
    """Ends the process with main's exit code; 2 and one line for a `ConfigError`, 3 and one for a `NumbersError`, 130
    for Ctrl-C."""
    keep_freed_memory()
    try:
        code = main()
        sys.stdout.flush()
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except NumbersError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 3
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    except BrokenPipeError:  # the reader of a pipe has left: not an error of ours
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    sys.exit(code)


def notify(text: str) -> None:
    """To stderr at once: what is no result."""
    print(text, file=sys.stderr, flush=True)


def load_config(path: str) -> Config:
    """`get_config()` of a Python file. Raises ConfigError where there is none."""
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"config={path!r}: no such file")
    spec = importlib.util.spec_from_file_location("experiment", file)
    if spec is None or spec.loader is None:
        raise ConfigError(f"config={path!r}: must be a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        get_config = getattr(module, "get_config", None)
        if get_config is None:
            raise ConfigError("must define get_config() -> train.config.Config")
        config = get_config()
    except ConfigError as error:
        raise ConfigError(f"config={path!r}: {error}") from error
    except Exception as error:  # a mistake in the user's file
        last = traceback.extract_tb(error.__traceback__)[-1]
        line = getattr(error, "lineno", None) or last.lineno
        raise ConfigError(f"config={path!r}, line {line}: {type(error).__name__}: {error}") from error
    if not isinstance(config, Config):
        raise ConfigError(
            f"config={path!r}: get_config() must return a train.config.Config, not {type(config).__name__}"
        )
    return config


def parse_config(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> tuple[argparse.Namespace, Config]:
    """The program's own flags (of `parser`, which gets `--config`) and the configuration with overrides from flags.

    A flag for every field: `--model.top-k 2`, `--phases.1.optim.learning-rate 3e-4`.
    """
    parser.add_argument("--config", required=True, metavar="FILE", help="a Python file with get_config()")
    parser.add_argument("--workdir", metavar="DIR", help="the run's folder; the same as --run DIR")
    parser.add_argument("--help", "-h", action="store_true", help="show these flags and all fields with their defaults")
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if {"-h", "--help"} & set(arguments) and not any(a.split("=")[0] == "--config" for a in arguments):
        parser.print_help()
        print("\nWith --config FILE --help: every field of the configuration, as a flag, with its value there.")
        sys.exit(0)
    own, rest = parser.parse_known_args(arguments)
    config = load_config(own.config)
    if own.workdir is not None:
        rest = [*rest, "--run", own.workdir]
    if own.help:
        parser.print_help()
        rest = ["--help"]
    overridden: Any = tyro.cli(
        Config, default=config, args=rest, prog=f"{parser.prog} --config FILE", config=(tyro.conf.FlagConversionOff,)
    )
    return own, overridden
