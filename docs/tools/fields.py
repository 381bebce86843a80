"""Writes docs/reference/fields.md: every field of a configuration with its type, default, meaning and allowed values.

    python docs/tools/fields.py

All of it is read from the dataclasses. What a field refuses is found by trying: values of its type that are likely to
be wrong are put in, and what the dataclass says is what is allowed.
"""

import dataclasses
import inspect
import re
import sys
import types
import typing
from pathlib import Path
from typing import Any

import docstring_parser

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from mom_jax.fields import ConfigError  # noqa: E402  found by the line above
from train.config import Config, Phase  # noqa: E402

PAGE = ROOT / "docs" / "reference" / "fields.md"
TOP = """# Fields of a configuration

Made by `python docs/tools/fields.py` from the dataclasses, which `tests/docs/test_fields.py` compares with this page.

A configuration is a [`Config`](#config): `get_config()` of a file under `configs/`, or of your own, returns one. Every
field is a flag, with `-` for `_`: `--model.router.temperature 0.5`, `--phases.1.optim.learning-rate 3e-4` (phases are
counted from 0). `mom train --config quickstart --help` lists all of them with the values that they have there. A value
that cannot be is refused in [one line](../bad_inputs.md), with exit code 2.

Where something is *allowed*, that is what the field says to a wrong value while all others have their defaults; some
depend on others, and then the message says on which.
"""
# What is likely to be wrong for a field of this type.
PROBES: dict[Any, tuple[Any, ...]] = {int: (-1, 0), float: (-1.0, 0.0, 1.0, 1.5), str: ("",), bool: ()}


def parts(cls: type, path: str) -> list[tuple[str, type]]:
    """(path, dataclass) of a configuration and, below it, of its parts."""
    found = [(path, cls)]
    for name, hint in typing.get_type_hints(cls).items():
        many = typing.get_origin(hint) is tuple
        inner = typing.get_args(hint)[0] if many else hint
        if dataclasses.is_dataclass(inner):
            below = f"{name}.N" if many else name
            found += parts(typing.cast(type, inner), f"{path}.{below}".lstrip("."))
    return found


def described(cls: type) -> tuple[str, dict[str, str]]:
    """(what the docstring says of a dataclass, what it says of each field)."""
    parsed = docstring_parser.parse(inspect.cleandoc(cls.__doc__ or ""))
    text = "\n\n".join(filter(None, (parsed.short_description, parsed.long_description)))
    return text, {row.arg_name: " ".join((row.description or "").split()) for row in parsed.params}


def written(hint: Any) -> str:
    """A type as a reader says it."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(written(argument) for argument in arguments)
    if origin is tuple and arguments[-1] is Ellipsis:
        return f"any number of ({written(arguments[0])})"
    if origin is tuple:
        return ", ".join(written(argument) for argument in arguments)
    names = {int: "integer", float: "number", str: "text", bool: "`True`, `False`", type(None): "`None`"}
    return names.get(hint) or f"[{hint.__name__}](#{hint.__name__.lower()})"


def limits(cls: type, name: str, hint: Any) -> str:
    """What the field says to wrong values."""
    origin = typing.get_origin(hint)
    kinds = typing.get_args(hint) if origin in (typing.Union, types.UnionType) else (hint,)
    example = Phase("name", 1000) if cls is Phase else cls()
    said: list[str] = []
    for value in [value for kind in kinds for value in PROBES.get(kind, ())]:
        try:
            dataclasses.replace(typing.cast(Any, example), **{name: value})
        except ConfigError as error:
            found = re.fullmatch(rf"{name}=.*?: (?:must (?:be |lie )?)?(.*)", str(error))
            if found and found[1] not in said:
                said.append(found[1])
    return "; ".join(said)


def meaning(cls: type, name: str, hint: Any, text: str) -> str:
    allowed = limits(cls, name, hint)
    return linked(text) + (f" *Allowed: {allowed}.*" if allowed else "")


def default(field: "dataclasses.Field[Any]") -> str:
    value = field.default
    if value is dataclasses.MISSING:
        return "to be given"
    if dataclasses.is_dataclass(value):
        return "its defaults"
    if isinstance(value, tuple) and any(dataclasses.is_dataclass(row) for row in value):
        return "; ".join(f"{row.name}, {row.steps} steps" for row in value)
    return f"`{value!r}`" if isinstance(value, str) else f"`{value}`"


def linked(text: str) -> str:
    """The same with links to the pages that it names."""
    return re.sub(r"docs/(\w+\.md)", r"[\1](../\1)", text)


def section(path: str, cls: type) -> str:
    """The fields of one dataclass as Markdown."""
    text, meanings = described(cls)
    hints = typing.get_type_hints(cls)
    rows = ["| field | type | default | meaning |", "|---|---|---|---|"]
    for field in dataclasses.fields(cls):
        cells = (
            f"`{field.name}`",
            written(hints[field.name]),
            default(field),
            meaning(cls, field.name, hints[field.name], meanings.get(field.name, "")),
        )
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    flag = f"Flags: `--{path}.FIELD`" if path else "Flags: `--FIELD`"
    return f"## {cls.__name__}\n\n{flag}, in `{cls.__module__}`.\n\n{linked(text)}\n\n" + "\n".join(rows) + "\n"


def page() -> str:
    """The whole page. A dataclass that stands at several places has one section, with all its paths."""
    paths: dict[type, list[str]] = {}
    for path, cls in parts(Config, ""):
        paths.setdefault(cls, []).append(path)
    flags = {cls: ".FIELD`, `--".join(places) for cls, places in paths.items()}
    return "\n".join([TOP, *(section(flags[cls], cls) for cls in paths)])


def undescribed() -> list[str]:
    """Fields without a word of what they mean, which are none whose type says it all (a part of the configuration)."""
    classes = {cls for _, cls in parts(Config, "")}
    return [
        f"{cls.__name__}.{field.name}"
        for cls in sorted(classes, key=lambda cls: cls.__name__)
        for field in dataclasses.fields(cls)
        if not described(cls)[1].get(field.name)
    ]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"{PAGE.relative_to(ROOT)}: {page().count(chr(10))} lines")
