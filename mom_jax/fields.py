"""Typed frozen dataclasses: checks on construction, and reading from plain dictionaries.

Every complaint is one line that names the field, the value and what is allowed.
"""

import dataclasses
import difflib
import types
import typing
from typing import Any


class ConfigError(Exception):
    """A configuration that cannot be: one line with the field, its value and what is allowed."""


def require(condition: bool, field: str, value: object, allowed: str) -> None:
    """Raises `ConfigError` naming `field`, `value` and `allowed` unless `condition` holds."""
    if not condition:
        raise ConfigError(f"{field}={value!r}: {allowed}")


def describe(hint: Any) -> str:
    """`hint` in words, for messages."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return "one of " + ", ".join(repr(a) for a in args)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe(a) for a in args)
    if origin is tuple:
        return f"a tuple of {describe(args[0])}"
    return {int: "an integer", float: "a number", bool: "true or false", str: "a text", type(None): "None"}.get(
        hint, getattr(hint, "__name__", str(hint))
    )


def matches(value: Any, hint: Any) -> bool:
    """Whether `value` has the type `hint`; an integer passes as a float, a bool never as a number."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return any(type(value) is type(a) and value == a for a in args)
    if origin in (typing.Union, types.UnionType):
        return any(matches(value, a) for a in args)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if len(args) == 2 and args[1] is Ellipsis:
            return all(matches(v, args[0]) for v in value)
        return len(value) == len(args) and all(matches(v, a) for v, a in zip(value, args, strict=True))
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def check_types(config: Any) -> None:
    """Raises `ConfigError` for the first field of the dataclass `config` whose value has the wrong type."""
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        require(matches(value, hints[field.name]), field.name, value, f"must be {describe(hints[field.name])}")


def nearest(name: str, names: typing.Iterable[str]) -> str:
    """A hint at the most similar of `names`, or all of them."""
    names = sorted(names)
    close = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known names: {', '.join(names)}"


def from_dict(cls: type, data: Any, path: str = "") -> Any:
    """Builds the dataclass `cls` from nested plain dictionaries and lists, as `dataclasses.asdict` and JSON give them.

    Raises `ConfigError` for an unknown or missing field and for a value of the wrong type; fields are named by path.
    """
    require(isinstance(data, dict), path or cls.__name__, data, f"must be a table of {cls.__name__}'s fields")
    hints = typing.get_type_hints(cls)
    values = {}
    for name, value in data.items():
        where = f"{path}.{name}" if path else str(name)
        require(name in hints, where, value, f"unknown field; {nearest(str(name), hints)}")
        values[name] = _from_plain(hints[name], value, where)
    missing = [
        f.name
        for f in dataclasses.fields(cls)
        if f.name not in values and f.default is f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"{path or cls.__name__}: missing field {missing[0]!r}")
    try:
        return cls(**values)
    except ConfigError as error:
        raise ConfigError(f"{path}.{error}" if path else str(error)) from None


def _from_plain(hint: Any, value: Any, path: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast(type, hint), value, path)
    if origin is tuple and isinstance(value, list | tuple):
        item = args if args[-1] is not Ellipsis else [args[0]] * len(value)
        if len(item) == len(value):
            return tuple(_from_plain(h, v, f"{path}[{i}]") for i, (h, v) in enumerate(zip(item, value, strict=True)))
    if origin in (typing.Union, types.UnionType):
        for option in args:
            if option is type(None) and value is None:
                return None
            if typing.get_origin(option) is tuple and isinstance(value, list):
                return _from_plain(option, value, path)
    return value
