"""Typed frozen dataclasses: checks on construction, and reading from plain dictionaries.

Every complaint is one line that names the field, the value and what is allowed.
"""

import dataclasses
import difflib
import math
import types
import typing
from typing import Any


class ConfigError(Exception):
    """A configuration that cannot be: one line with the field, its value and what is allowed."""


# How JSON has what a prior forbids with, and a limit that nothing is beyond.
INFINITIES = {-math.inf: "-inf", math.inf: "inf"}
# So many characters of a value stand in a message.
SHOWN = 300
# JAX counts and measures arrays with 32 bits, integers of Python's own libraries have 64.
MOST, MOST_SEED = 2**31 - 1, 2**63 - 1
LARGEST, SMALLEST = (2 - 2**-23) * 2.0**127, 2.0**-126  # of float32
TOO_SMALL = f"is 0 in float32, which has nothing below {SMALLEST:.2g}"


def require(condition: bool, field: str, value: object, allowed: str) -> None:
    """Raises `ConfigError` naming `field`, `value` and `allowed` unless `condition` holds."""
    if not condition:
        raise ConfigError(f"{field}={shown(value)}: {allowed}")


def shown(value: object) -> str:
    """`value` for a message: whatever it is, one line that is not too long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # integers of thousands of digits; lists of lists of lists
        return f"<{type(value).__name__}>"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}... ({len(text):,} characters)"


def is_text(value: str) -> bool:
    """Whether a text is of whole characters: of a command line that is no UTF-8 Python makes halves."""
    return not any("\ud800" <= character <= "\udfff" for character in value)


def require_at_most(config: Any, limit: int, *names: str) -> None:
    """Raises `ConfigError` for the first of the fields that is above `limit`; None passes."""
    for name in names:
        value = getattr(config, name)
        require(value is None or value <= limit, name, value, f"must be at most {limit}")


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


def check_types(config: Any, *, infinite: bool = False) -> None:
    """Raises `ConfigError` for the first field of the dataclass `config` whose value has the wrong type, or is one that
    no field can have: a number that float32 has not, an integer of more than 64 bits, a text with a NUL or halves of
    characters.

    infinite: whether numbers may be infinite.
    """
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        require(matches(value, hints[field.name]), field.name, value, f"must be {describe(hints[field.name])}")
        if isinstance(value, int):
            require(abs(value) <= MOST_SEED, field.name, value, f"must be at most {MOST_SEED}")
            if abs(value) > MOST and _is_float(hints[field.name]):  # what JAX would take for an integer of 32 bits
                object.__setattr__(config, field.name, float(value))
        elif isinstance(value, float):
            finite = abs(value) <= LARGEST or (infinite and abs(value) == math.inf)
            require(finite, field.name, value, "must be a number" if infinite else "must be finite")
            require(value == 0 or abs(value) >= SMALLEST, field.name, value, TOO_SMALL)
        elif isinstance(value, str):
            require("\0" not in value, field.name, value, "must not have a NUL")
            require(is_text(value), field.name, value, "must be UTF-8")


def _is_float(hint: Any) -> bool:
    """Whether a field is of floats, and integers pass as such."""
    kinds = (hint, *typing.get_args(hint))
    return float in kinds and int not in kinds


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


def to_dict(config: Any) -> Any:
    """What `from_dict` reads: plain dictionaries, lists and values as JSON has them, which has no infinity: it is the
    text "inf" or "-inf"."""
    if dataclasses.is_dataclass(config):
        return {field.name: to_dict(getattr(config, field.name)) for field in dataclasses.fields(config)}
    if isinstance(config, tuple):
        return [to_dict(value) for value in config]
    return INFINITIES.get(config, config) if isinstance(config, float) else config


def _from_plain(hint: Any, value: Any, path: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is float and isinstance(value, str) and value in INFINITIES.values():
        return float(value)
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
