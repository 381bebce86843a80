"""Token caches: every document of a source tokenized once, kept as flat files that any number of processes can map.

A cache is a folder with `train.bin` and `val.bin` (token ids one after another, as nanoGPT has them), beside each the
places where its documents end (`.ends`, int64), and `meta.json`. The folder is named by a digest of everything its
contents depend on, is written beside its place and renamed into it when whole. So a stale or half-written cache is
never used, and deleting the folder is always safe.
"""

import contextlib
import dataclasses
import errno
import functools
import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mom_jax.fields import ConfigError
from train.data.documents import Side
from train.files import locked, read_record

# Bytes up to which a file's checksum is compared whenever its cache is opened: some tenths of a second.
CHECKED = 2**28

# Part of every digest: raise it when the meaning of the files changes.
FORMAT = 2
META = "meta.json"
STEMS: dict[Side, str] = {"train": "train", "validation": "val"}
DTYPES = ("uint16", "uint32")
# What meta.json may have beside its checksum, which older caches do not have.
_NAMES = ("format", "source", "split", "tokenizer", "vocab_size", "eos_id", "dtype", "left_out", *STEMS)


@dataclasses.dataclass(frozen=True, eq=False)
class TokenCache:
    """The tokens of one side of a source, each document followed by the tokenizer's `eos_id`.

    folder: the cache's. file: where the tokens are. tokens: uint16 or uint32 [tokens], a read-only memory map. ends:
    int64 [documents], where each document ends. meta: `meta.json`, with what it says of this side.
    """

    folder: Path
    file: Path
    tokens: np.ndarray
    ends: np.ndarray
    meta: dict[str, Any]

    @property
    def num_tokens(self) -> int:
        return len(self.tokens)

    @property
    def num_documents(self) -> int:
        return len(self.ends)

    @property
    def left_out(self) -> dict[str, int] | None:
        """How many documents of the whole source were broken and left out, by what is wrong; None where none may be."""
        return self.meta.get("left_out")

    @property
    def starts(self) -> np.ndarray:
        """int64 [documents + 1]: where each document begins and, last, where the tokens end.

        Raises `ConfigError` if they are not in order."""
        starts = np.concatenate([np.zeros(1, np.int64), self.ends])
        if not np.all(np.diff(starts) > 0):
            raise self._damaged(self._ends_file, "has documents out of order")
        return starts

    @property
    def _ends_file(self) -> Path:
        return self.folder / f"{self.meta['stem']}.ends"

    def _damaged(self, file: Path, why: str) -> ConfigError:
        if file.parent == self.folder:
            return damaged(file, why)
        again = f"if the file is right, delete {str(self.folder)!r}, and it is read anew"
        return ConfigError(f"data.source: {str(file)!r} {why} since it was read first; {again}")

    def checked(self, tokens: np.ndarray) -> np.ndarray:
        """`tokens` from here; raises `ConfigError` if one is not in the vocabulary."""
        if tokens.max(initial=0) >= self.meta["vocab_size"]:
            why = f"has the token {tokens.max()}, the vocabulary has {self.meta['vocab_size']}"
            raise self._damaged(self.file, why)
        return tokens

    def verify(self, most: int | None = None) -> None:
        """Reads everything, or files up to `most` bytes; raises `ConfigError` if it is not what was written."""
        for file, array, name in ((self.file, self.tokens, "crc32"), (self._ends_file, self.ends, "ends_crc32")):
            if most is not None and array.nbytes > most:
                continue
            checksum = 0
            for start in range(0, len(array), 2**24):
                checksum = zlib.crc32(array[start : start + 2**24].tobytes(), checksum)
            if checksum != self.meta[name]:
                raise self._damaged(file, f"has the checksum {checksum:08x}, it was {self.meta[name]:08x}")

    @classmethod
    def open(cls, folder: str | os.PathLike[str], side: Side) -> "TokenCache":
        """Opens one side of a finished cache; raises `ConfigError` if it is not whole."""
        folder = Path(folder)
        try:
            meta = _side(read_record(folder / META, META, _NAMES), side)
            dtype, count = np.dtype(meta["dtype"]), meta["tokens"]
            file = folder / meta["file"]
            size = file.stat().st_size
            ends = np.memmap(folder / f"{STEMS[side]}.ends", np.int64, mode="r")
        except (OSError, ValueError, ConfigError) as error:
            raise damaged(folder, f"is not whole ({error})") from None
        if size != count * dtype.itemsize:
            raise damaged(file, f"has {size:,} bytes, not {count * dtype.itemsize:,}")
        if len(ends) != meta["documents"] or ends[-1] != count or ends[0] < 1:
            raise damaged(folder / f"{STEMS[side]}.ends", f"does not fit {META}")
        return cls(folder, file, np.memmap(file, dtype, mode="r"), ends, meta)


def _side(facts: dict[str, Any], side: Side) -> dict[str, Any]:
    """What `meta.json` says of a side. Raises ValueError for another shape than `encode` and `index` give it."""
    if not isinstance(facts.get(side), dict):
        raise ValueError(f"{META} says nothing of {side!r}")
    meta = {name: value for name, value in facts.items() if name not in STEMS} | facts[side] | {"stem": STEMS[side]}
    for name in ("tokens", "documents", "vocab_size", "crc32", "ends_crc32"):
        if type(meta.get(name)) is not int or meta[name] < 0:
            raise ValueError(f"{META} has no number {name!r}")
    if type(meta.get("eos_id")) is not int or not isinstance(meta.get("file"), str) or "\0" in meta["file"]:
        raise ValueError(f"{META} has no 'eos_id' or 'file'")
    left_out = meta.get("left_out", {})
    if not isinstance(left_out, dict) or not all(type(count) is int for count in left_out.values()):
        raise ValueError(f"{META} has a 'left_out' that counts nothing")
    if meta.get("dtype") not in DTYPES or not isinstance(meta.get("tokenizer", 0), str | None):
        raise ValueError(f"{META} must have a 'dtype' of {' or '.join(DTYPES)}, and a 'tokenizer'")
    return meta


def damaged(path: Path, why: str) -> ConfigError:
    """The error of a cache, or of what a cache is made with, that is not what was written."""
    return ConfigError(f"data.cache: {str(path)!r} {why}; delete its folder to have it made again")


def describe_left_out(left_out: dict[str, int]) -> str:
    """`3 broken documents were left out (2 not UTF-8, 1 without a text)`, `no broken document was left out`."""
    total = sum(left_out.values())
    if total == 0:
        return "no broken document was left out"
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(left_out.items()))
    return f"{total:,} broken document{'s were' if total > 1 else ' was'} left out ({kinds})"


def digest(facts: dict[str, Any]) -> str:
    """A name for a folder whose contents depend on `facts`."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def partial_folder(folder: Path) -> Path:
    """Where `folder` is while it is made."""
    return folder.with_name(f".{folder.name}.partial")


def build_folder(
    folder: Path,
    fill: Callable[[Path], None],
    notify: Callable[[str], None] = lambda text: None,
    *,
    keep: Callable[[Path], bool] | None = None,
) -> None:
    """Makes `folder` with the files that `fill` writes, all or nothing; leaves it alone if it exists.

    keep: whether what `fill` has written is worth keeping where it did not end; the next call's `fill` finds it.

    Of processes that want the same folder one builds and the others `notify` that they wait. The system drops a dead
    process's lock, so whoever holds it knows that a partial folder lying there is nobody's. Raises `ConfigError` where
    files cannot be written.
    """
    with _writing(folder.parent):
        new = [place for place in (folder.parent, *folder.parent.parents) if not place.exists()]
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock, name = folder.with_name(f".{folder.name}.lock"), f"data.cache={str(folder.parent)!r}"
        try:
            wait = functools.partial(notify, f"waiting: another process is making {folder}")
            with locked(lock, name, wait=True, temporary=True, waiting=wait):
                if not folder.exists():
                    _build(folder, fill, keep)
        except BaseException:
            with contextlib.suppress(OSError):  # where something is in them, they stay
                for place in new:
                    place.rmdir()
            raise


def _build(folder: Path, fill: Callable[[Path], None], keep: Callable[[Path], bool] | None) -> None:
    partial = partial_folder(folder)
    if partial.is_symlink():  # nobody's: it was not made here
        partial.unlink()
    if keep is None or not (partial.is_dir() and keep(partial)):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
    try:
        fill(partial)
        partial.rename(folder)
    finally:
        if keep is None or (partial.is_dir() and not keep(partial)):
            shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        must = "must be a folder that can be written" if not full else "needs more room, what is finished is kept"
        raise ConfigError(f"data.cache={str(folder)!r}: {must} ({error.strerror})") from None
