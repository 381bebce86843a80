"""Checksums of a checkpoint's files. They lie beside the files, written when these are whole and compared when they are
read: orbax compresses arrays without a checksum of what they hold."""

import dataclasses
import errno
import os
import stat
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mom_jax.fields import ConfigError, shown
from train.files import read_json, to_json, write_whole

MANIFEST = "manifest.json"
VERSION = 1

_BLOCK = 2**22  # bytes read at a time; the checksum is made while others use Python
_THREADS = 4
_MOST = 2**28  # bytes of a manifest

# What every checkpoint has, of any version of ours; an optimizer's state only where it was trained.
_NEEDED = ("meta/metadata", "params")


@dataclasses.dataclass(frozen=True)
class Problem:
    """Why a checkpoint cannot be trusted: one clause. rotten: all is there, in the right size, with other bytes than
    were written; not what an interrupted copy leaves, but a disk or a memory that fails."""

    text: str
    rotten: bool = False

    def __str__(self) -> str:
        return self.text


def seal(folder: Path) -> int:
    """Writes the manifest of a checkpoint, over one that is there; returns how many bytes it vouches for."""
    names = _files(folder)
    with ThreadPoolExecutor(_THREADS) as pool:
        entries = dict(zip(names, pool.map(lambda name: _checked(folder / name), names), strict=True))
    record = {"version": VERSION, "checksum": "crc32", "files": entries}
    write_whole(folder / MANIFEST, to_json(record, indent=0))
    return sum(size for size, _ in entries.values())


def sealed(folder: Path) -> bool:
    """Whether a checkpoint has a manifest, whatever it says."""
    return (folder / MANIFEST).exists()


def problem(folder: Path, *, contents: bool = True) -> Problem | None:
    """What is wrong with a checkpoint on disk; None where nothing is. Of one without a manifest only that its parts are
    there. contents: whether to read the files, not only their sizes.

    Raises OSError where that cannot be known, because this process may not read it, or has too many files open.
    """
    if not folder.is_dir():
        return Problem("is no folder")
    if not sealed(folder):
        return _bare(folder)
    files = _entries(folder)
    if isinstance(files, Problem):
        return files
    for name, (size, _) in files.items():
        try:
            facts = (folder / name).stat()
        except OSError as error:
            return _damage(name, error)
        if not stat.S_ISREG(facts.st_mode):
            return Problem(f"{name} is no file")
        if facts.st_size != size:
            return Problem(f"{name} has {facts.st_size:,} bytes, not {size:,}")
    if not contents:
        return None
    with ThreadPoolExecutor(_THREADS) as pool:
        found = pool.map(lambda name: _compared(folder, name, files[name][1]), files)
        return next((wrong for wrong in found if wrong is not None), None)


def _bare(folder: Path) -> Problem | None:
    for name in _NEEDED:
        place = folder / name
        if not place.exists():
            return Problem(f"{name} is missing")
        empty = not any(place.iterdir()) if place.is_dir() else place.stat().st_size == 0
        if empty:
            return Problem(f"{name} is empty")
    # A pipe would make whoever reads it wait for ever.
    odd = next((name for name in _files(folder) if not (folder / name).is_file()), None)
    return None if odd is None else Problem(f"{odd} is no file")


def _entries(folder: Path) -> dict[str, tuple[int, int]] | Problem:
    """By file, its size and checksum."""
    try:
        record: Any = read_json(folder / MANIFEST, MANIFEST, _MOST)
        if record["version"] != VERSION:
            return Problem(f"{MANIFEST} has version {shown(record['version'])}, this program reads {VERSION}")
        entries = {name: (size, checksum) for name, (size, checksum) in record["files"].items()}
    except ConfigError as error:
        return _damage(MANIFEST, error.__cause__) if isinstance(error.__cause__, OSError) else Problem(str(error))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        return Problem(f"{MANIFEST} cannot be read ({type(error).__name__})")
    numbers = all(type(n) is int for entry in entries.values() for n in entry)
    inside = all(not Path(name).is_absolute() and ".." not in Path(name).parts and "\0" not in name for name in entries)
    if not (numbers and inside and all(any(name.startswith(part) for name in entries) for part in _NEEDED)):
        return Problem(f"{MANIFEST} does not list the files of a checkpoint")
    return entries


def _files(folder: Path) -> list[str]:
    """All files of a checkpoint but its manifest, relative to the folder."""
    found = []
    for place, _, names in os.walk(folder):
        found += [(Path(place) / name).relative_to(folder).as_posix() for name in names]
    return sorted(name for name in found if MANIFEST not in Path(name).name)


def _checked(path: Path) -> tuple[int, int]:
    """A file's size and checksum."""
    size = checksum = 0
    with path.open("rb", buffering=0) as file:
        while block := file.read(_BLOCK):
            size, checksum = size + len(block), zlib.crc32(block, checksum)
    return size, checksum


def _compared(folder: Path, name: str, expected: int) -> Problem | None:
    try:
        _, checksum = _checked(folder / name)
    except OSError as error:
        return _damage(name, error)
    if checksum == expected:
        return None
    return Problem(f"{name} has the checksum {checksum:08x}, it was {expected:08x}", rotten=True)


def _damage(name: str, error: OSError) -> Problem:
    """What an error says of a checkpoint's file. Raises the error where it is none of the file's own."""
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return Problem(f"{name} is missing")
    if error.errno in (errno.EIO, errno.ELOOP, errno.ENXIO):
        return Problem(f"{name}: cannot be read ({error.strerror})", rotten=error.errno == errno.EIO)
    raise error
