"""Files that may be a stranger's: whatever they are or contain, it is a value or one line.

A file is read whole, as far as a limit goes, from a regular file only: a pipe would make the program wait for ever.
JSON has each name once, no NaN and no infinity, and is not deep.
"""

import json
import math
import os
import re
import stat
from pathlib import Path
from typing import Any, NoReturn

from mom_jax.fields import ConfigError

# Bytes of the largest JSON file that is read: tokenizers of a million entries have less.
MOST_JSON = 2**28
# Levels of lists and objects in one another.
MOST_DEPTH = 64


def read_bytes(path: Path, name: str, most: int = MOST_JSON) -> bytes:
    """A file's content. Raises `ConfigError` beginning with `name` where it cannot be read, is no regular file, or has
    more than `most` bytes."""
    try:
        # Without waiting for a writer, if it should be a pipe.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            facts = os.fstat(descriptor)
            if not stat.S_ISREG(facts.st_mode):
                raise ConfigError(f"{name}: cannot be read ({_kind(facts.st_mode)})")
            if facts.st_size > most:
                raise ConfigError(f"{name}: has {facts.st_size:,} bytes, more than {most:,}")
            with open(descriptor, "rb", closefd=False) as file:
                content = file.read(most + 1)
        finally:
            os.close(descriptor)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise ConfigError(f"{name}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    if len(content) > most:
        raise ConfigError(f"{name}: has more than {most:,} bytes")
    return content


def _kind(mode: int) -> str:
    return "a folder" if stat.S_ISDIR(mode) else "no regular file"


def read_text(path: Path, name: str, most: int = MOST_JSON) -> str:
    """The same as text. Raises `ConfigError` where it is not UTF-8."""
    return _decoded(read_bytes(path, name, most), name)


def _decoded(content: bytes, name: str) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name}: cannot be read (not UTF-8, byte {error.start})") from None


def read_json(path: Path, name: str, most: int = MOST_JSON, *, old: bool = False) -> Any:
    """The value in a JSON file. Raises `ConfigError` beginning with `name`; see `parse_json`."""
    return parse_json(read_bytes(path, name, most), name, old=old)


def parse_json(content: bytes | str, name: str, *, old: bool = False) -> Any:
    """The value of a JSON text. Raises `ConfigError` beginning with `name` where it is none, has a name twice in an
    object, NaN or infinity, halves of characters, or more than `MOST_DEPTH` levels.

    old: also take -Infinity, with which earlier versions wrote what a prior forbids.
    """
    text = content if isinstance(content, str) else _decoded(content, name)

    def constant(value: str) -> float:
        if old and value == "-Infinity":
            return -math.inf
        raise ValueError(f"{value} is no number of JSON's")

    try:
        value = json.loads(text, parse_constant=constant, parse_float=_finite, object_pairs_hook=_unique)
        _check(value, surrogates=re.search(r"\\u[dD][89a-fA-F]", text) is not None)
    except RecursionError:
        raise ConfigError(f"{name}: cannot be read (more than {MOST_DEPTH} levels)") from None
    except ValueError as error:
        raise ConfigError(f"{name}: cannot be read ({error})") from None
    return value


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{digits[:20]} is too large")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"it has {twice[:50]!r} twice")
    return found


def _check(value: Any, *, surrogates: bool) -> None:
    """Raises RecursionError for what is too deep, ValueError for halves of characters."""
    level, depth = [value], 0
    while level:
        if depth >= MOST_DEPTH and any(isinstance(item, dict | list) for item in level):
            raise RecursionError
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                below += item.values()
                below += item if surrogates else ()
            elif isinstance(item, list):
                below += item
            elif surrogates and isinstance(item, str):
                item.encode()
        level, depth = below, depth + 1


def within(folder: Path, part: Any, name: str) -> Path:
    """The file `part` of a folder. Raises `ConfigError` beginning with `name` for one that lies elsewhere, also by way
    of a link, or is none."""

    def refuse(why: str) -> NoReturn:
        raise ConfigError(f"{name}: names {str(part)[:100]!r}, which {why}")

    if not isinstance(part, str) or not part or "\0" in part:
        refuse("is no file's name")
    if Path(part).is_absolute() or ".." in Path(part).parts:
        refuse("lies outside of the folder")
    file = folder / part
    try:
        whole, inside = file.resolve(strict=True), folder.resolve(strict=True)
    except (OSError, RuntimeError, ValueError):
        refuse("is missing")
    # In Hugging Face's cache, folders `snapshots/X` have links into the folder `blobs` beside `snapshots`.
    store = inside.parents[1] / "blobs" if inside.parent.name == "snapshots" else inside
    if not (whole.is_relative_to(inside) or whole.is_relative_to(store)):
        refuse("is a link that leads outside of the folder")
    if not whole.is_file():
        refuse("is no file")
    return file
