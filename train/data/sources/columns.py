"""Documents in the columns of tables: which column has them, and what a row of it is."""

from collections.abc import Iterator
from typing import Any

from mom_jax.fields import ConfigError, nearest, require
from train.data.documents import NO_TEXT, NOT_UTF8, Broken, Document, Item


def choose(source: str, names: list[str], what: str = "column") -> str:
    """Which of the columns with texts is read: the one after `#`, else `text`, else the only one.

    what: what they are called. Raises `ConfigError` naming `data.source` where it is none of them, or not clear.
    """
    path, hash_sign, name = source.partition("#")
    if hash_sign:
        require(name in names, "data.source", source, f"there is no text {what} {name!r}; {nearest(name, names)}")
        return name
    require(bool(names), "data.source", source, f"has no text {what}")
    if "text" in names or len(names) == 1:
        return "text" if "text" in names else names[0]
    choices = " or ".join(f"{path}#{name}" for name in names)
    raise ConfigError(f"data.source={source!r}: has several text {what}s; choose one: {choices}")


def text_columns(schema: Any) -> list[str]:
    """The columns of a `pyarrow.Schema` that have texts."""
    return [field.name for field in schema if _is_text(field.type)]


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    if types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def rows(source: str, where: str, first: int, column: Any) -> Iterator[Item]:
    """The documents of some rows, as an arrow array has them; row i is named `where:i`. first: the first row's number.

    What is null or not UTF-8 is `Broken`.
    """
    for number, value in enumerate(_values(column), first):
        name = f"{where}:{number}"
        if isinstance(value, str):
            yield Document(name, value)
            continue
        kind = NO_TEXT if value is None else NOT_UTF8
        wrong = "has no text" if value is None else f"is not UTF-8 (byte {value.start})"
        yield Broken(name, kind, f"data.source={source!r}: {where}, row {number} {wrong}")


def _values(column: Any) -> list[str | UnicodeDecodeError | None]:
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        return [_value(value) for value in column]


def _value(value: Any) -> str | UnicodeDecodeError | None:
    try:
        return value.as_py()
    except UnicodeDecodeError as error:
        return error
