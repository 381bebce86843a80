"""Where documents come from: Python's own standard library, or text files.

A source lists its files in a fixed order and names them by their place below the source's folder, so that the same
files give the same documents, the same held-out ones and the same fingerprint wherever they lie.
"""

import dataclasses
import glob
import hashlib
import itertools
import os
import platform
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mom_jax.fields import ConfigError, nearest, require

# Neither tests nor what an installation adds: build-time settings differ between machines with the same Python.
_NOT_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
_PER_INSTALLATION = ("config-", "_sysconfigdata", "sitecustomize", "usercustomize")


class Document(NamedTuple):
    """name: the file's path below the source's folder, with '/'. text: all of it, line endings as they are."""

    name: str
    text: str


@dataclasses.dataclass(frozen=True)
class Source:
    """The files behind a `data.source`.

    source: the text it was opened with. files: (name, path) pairs, sorted by name. facts: more of the fingerprint.
    """

    source: str
    files: tuple[tuple[str, Path], ...]
    facts: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """The documents' names, in order."""
        return [name for name, _ in self.files]

    def documents(self) -> Iterator[Document]:
        """Reads the documents one by one, in the order of their names.

        Raises `ConfigError` naming the first file that cannot be read or is not UTF-8.
        """
        for name, path in self.files:
            try:
                text = self._read(path).decode("utf-8")
            except UnicodeDecodeError as error:
                raise ConfigError(f"data.source={self.source!r}: {path} is not UTF-8 (byte {error.start})") from None
            yield Document(name, text)

    def fingerprint(self) -> dict[str, Any]:
        """What identifies the documents, ready for JSON: the source, how many files, sha256 of names and contents."""
        digest = hashlib.sha256()
        for name, path in self.files:
            for part in (name.encode("utf-8", "surrogateescape"), self._read(path)):
                digest.update(len(part).to_bytes(8, "big") + part)
        return {"source": self.source, **self.facts, "files": len(self.files), "sha256": digest.hexdigest()}

    def _read(self, path: Path) -> bytes:
        try:
            return path.read_bytes()
        except OSError as error:
            raise ConfigError(f"data.source={self.source!r}: cannot read {path} ({error.strerror})") from None


def open_source(source: str) -> Source:
    """Opens `builtin:stdlib` or `text:GLOB` (`**` is any depth, `~` the home folder).

    Raises `ConfigError` naming `data.source` for an unknown source or one without files.
    """
    scheme, colon, rest = source.partition(":")
    if not colon:
        raise ConfigError(f"data.source={source!r}: unknown; {nearest(source, ['builtin:stdlib', 'text:GLOB'])}")
    require(
        scheme in ("builtin", "text"), "data.source", source, f"unknown kind; {nearest(scheme, ['builtin', 'text'])}"
    )
    if scheme == "text":
        return Source(source, _text_files(source, rest))
    require(rest == "stdlib", "data.source", source, "unknown; did you mean 'builtin:stdlib'?")
    return Source(source, _stdlib_files(source), {"python": platform.python_version()})


def _stdlib_files(source: str) -> tuple[tuple[str, Path], ...]:
    root = Path(sysconfig.get_path("stdlib"))
    files = {}
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in _NOT_LIBRARY]
        for path in (Path(folder, name) for name in names if name.endswith(".py")):
            name = path.relative_to(root).as_posix()
            if not name.startswith(_PER_INSTALLATION) and _is_utf8(path):
                files[name] = path
    require(bool(files), "data.source", source, f"this Python has no library sources in {root}")
    return tuple(sorted(files.items()))


def _is_utf8(path: Path) -> bool:
    try:
        path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    return True


def _text_files(source: str, pattern: str) -> tuple[tuple[str, Path], ...]:
    expanded = Path(os.path.expanduser(pattern))
    folders = expanded.parts[:-1]
    root = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), folders))
    require(bool(pattern) and root.is_dir(), "data.source", source, f"there is no folder {str(root)!r}")
    found = [Path(match) for match in glob.glob(str(expanded), recursive=True)]
    files = {path.relative_to(root).as_posix(): path for path in found if path.is_file()}
    require(bool(files), "data.source", source, "no file matches (for a whole folder: text:FOLDER/**/*.txt)")
    return tuple(sorted(files.items()))


def is_held_out(name: str, fraction: float) -> bool:
    """Whether the document `name` is for validation; about `fraction` of all names are.

    By a hash of the name alone: adding or removing documents moves no other document to the other side.
    """
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64


def check_split(names: Iterable[str], fraction: float) -> None:
    """Raises `ConfigError` naming `data.validation_fraction` unless both sides of the split have a document."""
    sides = [is_held_out(name, fraction) for name in names]
    field = "data.validation_fraction"
    require(any(sides), field, fraction, f"holds out none of the {len(sides)} documents; use more or a larger fraction")
    require(not all(sides), field, fraction, f"leaves none of the {len(sides)} documents for training")
