"""Completion of a program's flags in the shell, by argcomplete; `mom completion` has the script that asks for it.

The shell starts the program with the words so far in its environment, at every press of the key: so nothing is imported
for it that is not needed, no JAX above all, and no configuration's file is run.
"""

import argparse
import dataclasses
import os
import types
import typing
from collections.abc import Callable
from typing import Any, Literal

from train.flags.experiments import experiments


def complete(make_parser: Callable[[], argparse.ArgumentParser]) -> None:
    """Ends the process with the completions, if that is what the shell wants; otherwise does nothing."""
    if "_ARGCOMPLETE" in os.environ:
        import argcomplete

        argcomplete.autocomplete(make_parser(), always_complete_options="long")


def parser_of(kind: type) -> argparse.ArgumentParser:
    """A parser with a flag for every field of the dataclass `kind`, as tyro makes them of a program's flags."""
    parser = argparse.ArgumentParser()
    _add_fields(parser, kind, None, "", switches=True)
    return parser


def with_fields(parser: argparse.ArgumentParser, config: Any) -> argparse.ArgumentParser:
    """`parser` with a flag for every field of the instance `config`; what switches something takes a word there."""
    _add_fields(parser, type(config), config, "", switches=False)
    return parser


def complete_names(action: argparse.Action, function: str = "get_config") -> argparse.Action:
    """Has a flag's value completed from files, and from the names of those that come with mom_jax and have such a
    function."""

    def names(prefix: str, **_: Any) -> list[str]:
        from argcomplete.completers import FilesCompleter

        return [e.name for e in experiments() if e.function == function] + list(FilesCompleter(("py",))(prefix))

    action.completer = names  # type: ignore[attr-defined]
    return action


def _add_fields(parser: argparse.ArgumentParser, kind: type, value: Any, prefix: str, *, switches: bool) -> None:
    hints = typing.get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        hint, own = hints[field.name], getattr(value, field.name, None)
        name = prefix + field.name.replace("_", "-")
        if typing.get_origin(hint) is typing.Annotated:
            if "Positional" in map(repr, hint.__metadata__):
                parser.add_argument(field.name, nargs="?")
                continue
            named = next((mark.name for mark in hint.__metadata__ if getattr(mark, "name", None)), field.name)
            name, hint = prefix + named.replace("_", "-"), hint.__origin__
        if dataclasses.is_dataclass(hint):
            _add_fields(parser, typing.cast(type, hint), own, f"{name}.", switches=switches)
        elif isinstance(own, tuple) and own and dataclasses.is_dataclass(own[0]):
            for i, row in enumerate(own):
                _add_fields(parser, type(row), row, f"{name}.{i}.", switches=switches)
        elif hint is bool and switches:
            parser.add_argument(f"--{name}", action="store_true")
            parser.add_argument(f"--{prefix}no-{field.name.replace('_', '-')}", action="store_true")
        else:
            several = "*" if tuple in (hint, typing.get_origin(hint)) else None
            action = parser.add_argument(f"--{name}", choices=_words(hint), nargs=several)
            if field.name == "config":
                complete_names(action)


def _words(hint: Any) -> tuple[str, ...] | None:
    """What a field of this type may be, where these are a few words; None where not."""
    if hint is bool:
        return ("True", "False")
    if typing.get_origin(hint) is Literal:
        return tuple(map(str, typing.get_args(hint)))
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        parts = [_words(part) for part in typing.get_args(hint) if part is not type(None)]
        return None if None in parts or not parts else ("None", *(word for part in parts for word in part or ()))
    return None
