"""Faults of files, as disks, copies and crashes make them; each returns what it did, in a few words.

They take a file or a folder, of which the largest file is hit, and are deterministic: places come from a seed.
"""

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path


def largest(folder: Path, below: str = "") -> Path:
    """The largest file in a folder, or in one of its folders; of files of one size the first by name."""
    files = sorted(path for path in (folder / below).rglob("*") if path.is_file())
    return max(files, key=lambda path: path.stat().st_size)


def _file(path: Path) -> Path:
    return largest(path) if path.is_dir() else path


def truncate(path: Path, seed: int = 0) -> str:
    """Cuts the file somewhere behind its first byte."""
    file = _file(path)
    size = file.stat().st_size
    left = random.Random(seed).randrange(1, size)
    with file.open("r+b") as opened:
        opened.truncate(left)
    return f"{file.name} cut from {size} to {left} bytes"


def empty(path: Path, seed: int = 0) -> str:
    """Leaves the file with nothing in it; of a folder, the folder."""
    if path.is_dir():
        shutil.rmtree(path)
        path.mkdir()
    else:
        path.write_bytes(b"")
    return f"{path.name} is empty"


def remove(path: Path, seed: int = 0) -> str:
    """Deletes the file."""
    file = _file(path)
    file.unlink()
    return f"{file.name} is gone"


def flip(path: Path, seed: int = 0, bits: int = 1) -> str:
    """Flips so many bits of the file, which keeps its size and its times."""
    file, rng = _file(path), random.Random(seed)
    content = bytearray(file.read_bytes())
    for place in rng.sample(range(len(content) * 8), bits):
        content[place // 8] ^= 1 << place % 8
    stat = file.stat()
    file.write_bytes(content)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    return f"{bits} bits of {file.name} flipped"


def garble(path: Path, seed: int = 0) -> str:
    """Writes random bytes over the file, as many as it has."""
    file = _file(path)
    file.write_bytes(random.Random(seed).randbytes(file.stat().st_size))
    return f"{file.name} is noise"


# What every file may meet, by the name that a table has for it.
FILE_FAULTS: dict[str, Callable[..., str]] = {
    "truncated": truncate,
    "emptied": empty,
    "removed": remove,
    "a bit flipped": flip,
    "overwritten": garble,
}
