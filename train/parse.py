"""Dataclasses as flags, by tyro: a program's own, and all fields of a configuration."""

import argparse
import contextlib
import io
import re
import sys
from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

import tyro

from mom_jax.fields import ConfigError
from train.cli import called, import_modules, load_config
from train.config import Config
from train.flags.completion import complete, complete_names, parser_of, with_fields

Flags = TypeVar("Flags")

# A field of a program's flags: `imports: Imports = ()`.
Imports = Annotated[tuple[str, ...], tyro.conf.arg(name="import")]


def parse_flags(
    kind: type[Flags],
    arguments: Sequence[str] | None,
    *,
    prog: str,
    description: str | None = None,
    **options: Any,
) -> Flags:
    """The flags of a program as the dataclass `kind`, by tyro. options: of `tyro.cli`. Raises ConfigError for flags
    that are unknown or do not parse, in tyro's words."""
    complete(lambda: parser_of(kind))
    complaints, text = io.StringIO(), None if description is None else called(description)
    try:
        with contextlib.redirect_stderr(complaints):
            parsed: Flags = tyro.cli(kind, args=arguments, prog=called(prog), description=text, **options)
            return parsed
    except SystemExit as ended:
        if ended.code in (None, 0):  # --help
            raise
        raise ConfigError(_without_box(complaints.getvalue())) from None


def _without_box(box: str) -> str:
    """The words in one of tyro's boxes, without its title and its hint at the help."""
    rows = [re.sub("[\u2500-\u257f]", " ", re.sub("\x1b\\[[0-9;]*m", "", row)).strip() for row in box.splitlines()]
    words = [row for row in rows[1:] if row.strip("- ")]
    text = " ".join(words).partition(" For full helptext")[0]
    return re.sub(r"\s+", " ", text)


def parse_config(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> tuple[argparse.Namespace, Config]:
    """The program's own flags (of `parser`, which gets `--config`) and the configuration with overrides from flags.

    A flag for every field: `--model.top-k 2`, `--phases.1.optim.learning-rate 3e-4`.
    """
    parser.prog, parser.description = called(parser.prog), called(parser.description or "")
    text = "a Python file with get_config(), or the name of a configuration that comes with mom_jax, such as quickstart"
    complete_names(parser.add_argument("--config", required=True, metavar="FILE", help=text))
    help = "a module or Python file to import first, such as one that registers a router"
    parser.add_argument("--import", action="append", default=[], dest="imports", metavar="MODULE", help=help)
    parser.add_argument("--workdir", metavar="DIR", help="the run's folder; the same as --run DIR")
    parser.add_argument("--help", "-h", action="store_true", help="show these flags and all fields with their defaults")
    complete(lambda: with_fields(parser, Config()))
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if {"-h", "--help"} & set(arguments) and not any(a.split("=")[0] == "--config" for a in arguments):
        parser.print_help()
        print("\nWith --config FILE --help: every field of the configuration, as a flag, with its value there.")
        sys.exit(0)
    own, rest = parser.parse_known_args(arguments)
    import_modules(own.imports)
    config = load_config(own.config)
    if own.workdir is not None:
        rest = [*rest, "--run", own.workdir]
    if own.help:
        parser.print_help()
        rest = ["--help"]
    options: dict[str, Any] = {"default": config, "config": (tyro.conf.FlagConversionOff,)}
    return own, parse_flags(Config, rest, prog=f"{parser.prog} --config FILE", **options)
