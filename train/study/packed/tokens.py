"""A file of tokens for a machine that has nothing else: rows of one length, those that are held out first.

4096 bytes of JSON, filled up with spaces, then uint16 [held out + training, length], little-endian.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mom_jax.fields import MOST, ConfigError
from train.files import parse_json, whole_file, with_checksum, without_checksum, writing

HEADER = 4096
FORMAT = "mom_jax tokens 1"
DTYPE = np.dtype("<u2")
# What the header has, without a checksum where an older version wrote it.
_HEADER = ("format", "held_out", "training", "length", "vocab_size", "sha256", "source")


@dataclasses.dataclass(frozen=True, eq=False)
class TokenFile:
    """rows: uint16 [R, length], a read-only memory map, of which the first `held_out` are. digest: of the rows. source:
    what they were made of."""

    rows: np.ndarray
    held_out: int
    vocab_size: int
    digest: str
    source: dict[str, Any]

    @property
    def length(self) -> int:
        return int(self.rows.shape[1])

    @property
    def training(self) -> int:
        """The number of the other rows."""
        return len(self.rows) - self.held_out

    def describe(self) -> str:
        train, held_out = (f"{rows * self.length:,}" for rows in (self.training, self.held_out))
        return f"{train} tokens to train on and {held_out} held out, of {self.vocab_size} kinds"


def write_tokens(file: Path, held_out: np.ndarray, training: np.ndarray, vocab_size: int, source: Any) -> None:
    """Writes rows [R, length] of both kinds. Raises ConfigError where the file cannot be written."""
    rows = [np.ascontiguousarray(part, DTYPE) for part in (held_out, training)]
    header = {
        "format": FORMAT,
        "held_out": len(held_out),
        "training": len(training),
        "length": held_out.shape[1],
        "vocab_size": vocab_size,
        "sha256": _digest(*rows),
        "source": source,
    }
    text = json.dumps(with_checksum(header)).encode().ljust(HEADER)
    if len(text) > HEADER:
        raise ConfigError(f"data.source: is described by {len(text)} bytes; the file has room for {HEADER}")
    with writing(file), whole_file(file) as partial, partial.open("wb") as out:
        out.write(text)
        for part in rows:
            out.write(part.data)


def open_tokens(file: Path) -> TokenFile:
    """Raises ConfigError for a file that is none, or not whole."""
    try:
        if not file.is_file():  # a pipe would make the program wait for ever
            raise OSError("no regular file")
        with file.open("rb") as opened:
            header = parse_json(opened.read(HEADER), "its header")
        if header["format"] != FORMAT:
            raise ValueError("another format")
        counts = [header[name] for name in ("held_out", "training", "length", "vocab_size")]
        if not all(type(count) is int and 1 <= count <= MOST for count in counts):
            raise ValueError("its header has no counts of at least 1")
        held_out, training, length, vocab_size = counts
        size = HEADER + (held_out + training) * length * DTYPE.itemsize
        if file.stat().st_size != size:
            raise ValueError(f"it has {file.stat().st_size:,} bytes, its header says {size:,}")
        rows = np.memmap(file, DTYPE, mode="r", offset=HEADER, shape=(held_out + training, length))
        if _digest(rows) != header["sha256"] or int(rows.max()) >= vocab_size:
            raise ValueError("its tokens are not those that were written")
        try:
            without_checksum(header, _HEADER)
        except ValueError:
            raise ValueError("its header is not what was written") from None
        return TokenFile(rows, held_out, vocab_size, header["sha256"], header["source"])
    except OSError as error:
        raise ConfigError(f"tokens={str(file)!r}: cannot be read ({error.strerror or error})") from None
    except (ConfigError, ValueError, LookupError, TypeError) as error:
        raise ConfigError(f"tokens={str(file)!r}: is no whole file of `--pack` ({error})") from None


def _digest(*parts: np.ndarray) -> str:
    found = hashlib.sha256()
    for part in parts:
        found.update(np.ascontiguousarray(part).data)
    return found.hexdigest()


def order(seed: int, rows: int) -> Iterator[np.ndarray]:
    """Endless epochs: int64 [rows], each row once, in an order that (seed, epoch) alone say."""
    epoch = 0
    while True:
        yield np.random.default_rng(np.random.SeedSequence((seed, epoch))).permutation(rows)
        epoch += 1


def batches(seed: int, tokens: TokenFile, steps: int, size: int) -> np.ndarray:
    """int32 [steps, size]: the training rows of each step's batch."""
    parts: list[np.ndarray] = []
    for epoch in order(seed, tokens.training):
        parts.append(epoch)
        if sum(map(len, parts)) >= steps * size:
            break
    rows = np.concatenate(parts)[: steps * size] + tokens.held_out
    return rows.reshape(steps, size).astype(np.int32)


def held_out_batches(tokens: TokenFile, count: int, size: int) -> np.ndarray:
    """int32 [count, size]: the held-out rows that evaluations read, spread evenly. Raises ConfigError for too few."""
    if count * size > tokens.held_out:
        allowed = f"of {size} rows each must be at most {tokens.held_out // size}: so many has the file of tokens"
        raise ConfigError(f"final_batches={count}: {allowed}")
    return (np.arange(count * size) * tokens.held_out // (count * size)).reshape(count, size).astype(np.int32)
