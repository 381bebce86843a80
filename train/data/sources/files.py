"""Files as sources have them: those that a pattern matches, what identifies them, and complaints of them.

A file is named by its place below the source's folder, so that the same files give the same documents, and the same
held-out ones, wherever they lie.
"""

import contextlib
import glob
import hashlib
import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from mom_jax.fields import ConfigError, require

# Files are read in parts of about this size, in bytes; an interrupted preparation starts in the middle of one.
PART = 2**24
# Up to this size, in bytes, a source is known by its contents; larger ones by sizes and times, or every start would
# read them all.
_HASHED = 2**26


def matching(source: str, pattern: str, example: str) -> list[tuple[str, Path]]:
    """(name, path) of each file that `pattern` matches, in order. example: a source that takes a whole folder.

    Raises `ConfigError` naming `data.source` where there is none.
    """
    expanded = Path(os.path.expanduser(pattern))
    folders = expanded.parts[:-1]
    root = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), folders))
    require(bool(pattern) and root.is_dir(), "data.source", source, f"there is no folder {str(root)!r}")
    found = [Path(match) for match in glob.glob(str(expanded), recursive=True)]
    for path in found:
        require(path.exists(), "data.source", source, f"{str(path)!r} is a link to what is not there")
    files = sorted((path.relative_to(root).as_posix(), path) for path in found if path.is_file())
    require(bool(files), "data.source", source, f"no file matches (for a whole folder: {example})")
    return files


class Files:
    """Opens files and complains of them in the name of their source."""

    def __init__(self, source: str) -> None:
        self.source = source

    def error(self, why: str) -> ConfigError:
        return ConfigError(f"data.source={self.source!r}: {why}")

    def size(self, path: Path) -> int:
        return self._stat(path).st_size

    @contextlib.contextmanager
    def _reading(self, path: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self.error(f"cannot read {path} ({error.strerror})") from None

    def _stat(self, path: Path) -> os.stat_result:
        with self._reading(path):
            return path.stat()

    def opened(self, path: Path) -> IO[bytes]:
        with self._reading(path):
            return path.open("rb")

    def fingerprint(self, files: Sequence[tuple[str, Path]], size: int | None = None) -> dict[str, Any]:
        """What identifies the files: sha256 of names and contents or, of many bytes, of names, sizes and times."""
        size = sum(self.size(path) for _, path in files) if size is None else size
        digest = hashlib.sha256()
        for name, path in files:
            if size <= _HASHED:
                with self._reading(path):
                    content = path.read_bytes()
            else:
                stat = self._stat(path)
                content = f"{stat.st_size} {stat.st_mtime_ns}".encode()
            for part in (name.encode("utf-8", "surrogateescape"), content):
                digest.update(len(part).to_bytes(8, "big") + part)
        return {"files": len(files), "bytes": size, "sha256": digest.hexdigest()}
