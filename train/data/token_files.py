"""`bin:FOLDER`: token files that were made elsewhere, used where they lie.

train.bin and val.bin hold token ids and nothing else. Without a `meta.json` they are nanoGPT's: uint16, of GPT-2's
vocabulary or, where nanoGPT's meta.pkl lies beside them, of as many ids as there are. A `meta.json` says it all:
{"dtype": "uint16" or "uint32", "vocab_size": 50257, "eos_id": 50256 or null, "tokenizer": its fingerprint or left out}.
A token cache is such a folder too.
"""

import dataclasses
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mom_jax.fields import ConfigError, require
from train.data.cache import DTYPES, META, STEMS, build_folder, digest
from train.data.documents import NO_EOS, SIDES
from train.files import read_json, write_record

GPT2_VOCABULARY, GPT2_EOS = 50257, 50256
_CHUNK = 2**24  # tokens


@dataclasses.dataclass(frozen=True)
class TokenFiles:
    """A folder of token files.

    dtype: of the ids. vocab_size: None where the files themselves must tell. eos_id: of the token that ends a document,
    or `NO_EOS`. tokenizer: its fingerprint, where it is known. facts: what identifies the files.
    """

    source: str
    folder: Path
    dtype: str
    vocab_size: int | None
    eos_id: int
    tokenizer: str | None
    facts: dict[str, Any]

    def file(self, side: Any) -> Path:
        return self.folder / f"{STEMS[side]}.bin"


def open_token_files(source: str) -> TokenFiles:
    """Looks at `bin:FOLDER`. Raises `ConfigError` naming `data.source` for files that are not there or do not fit."""
    folder = Path(os.path.expanduser(source.removeprefix("bin:"))).absolute()
    require(folder.is_dir(), "data.source", source, f"there is no folder {str(folder)!r}")
    meta = _read_meta(source, folder)
    sizes = {}
    for side in SIDES:
        file = folder / f"{STEMS[side]}.bin"
        require(
            file.is_file(), "data.source", source, f"there is no {file.name}; both train.bin and val.bin are needed"
        )
        stat, width = file.stat(), np.dtype(meta["dtype"]).itemsize
        whole = stat.st_size > 0 and stat.st_size % width == 0
        must = f"{file.name} has {stat.st_size} bytes, not a multiple of {width} ({meta['dtype']}): empty or cut off"
        require(whole, "data.source", source, must)
        sizes[side] = [stat.st_size, stat.st_mtime_ns]
    facts = {"source": source, "folder": str(folder), "files": sizes, **meta}
    return TokenFiles(source, folder, meta["dtype"], meta["vocab_size"], meta["eos_id"], meta["tokenizer"], facts)


def _read_meta(source: str, folder: Path) -> dict[str, Any]:
    path = folder / META
    if not path.exists():
        known = not (folder / "meta.pkl").exists()
        vocabulary = {"vocab_size": GPT2_VOCABULARY, "eos_id": GPT2_EOS}
        unknown = {"vocab_size": None, "eos_id": NO_EOS}
        return {"dtype": "uint16", **(vocabulary if known else unknown), "tokenizer": None}
    try:
        meta = read_json(path, str(path), 2**20)
        dtype, vocab_size, eos_id = meta["dtype"], meta["vocab_size"], meta["eos_id"]
        eos_id = NO_EOS if eos_id is None else eos_id
        tokenizer = meta.get("tokenizer")
        good = dtype in DTYPES and type(vocab_size) is int and 1 <= vocab_size <= np.iinfo(dtype).max + 1
        good = good and type(eos_id) is int and NO_EOS <= eos_id < vocab_size and isinstance(tokenizer, str | None)
    except (ConfigError, KeyError, TypeError, AttributeError):
        good = False
    must = 'must have "dtype" (uint16 or uint32), "vocab_size" that fits it and "eos_id" (an id or null)'
    require(good, "data.source", source, f"{path} {must}")
    return {"dtype": dtype, "vocab_size": vocab_size, "eos_id": eos_id, "tokenizer": tokenizer}


def index_folder(root: Path, files: TokenFiles) -> Path:
    """The folder of the cache that points to the files, whether it is there or not."""
    return root / f"bin-{digest(files.facts)}"


def index(root: Path, files: TokenFiles, notify: Callable[[str], None]) -> Path:
    """Reads the files once, for the places where documents end, and returns the folder of a cache that points to them.

    Raises `ConfigError` for an id outside the vocabulary.
    """
    folder = index_folder(root, files)

    def fill(partial: Path) -> None:
        sides: dict[str, Any] = {}
        largest = 0
        for side in SIDES:
            notify(f"reading {files.file(side)}")
            facts, top = _scan(files, side, partial / f"{STEMS[side]}.ends")
            sides[side], largest = facts, max(largest, top)
        vocab_size = files.vocab_size or largest + 1
        kind = "GPT-2's" if files.vocab_size == GPT2_VOCABULARY else "the"
        hint = f'; {META} beside the files must have "dtype", "vocab_size" and "eos_id"'
        allowed = f"has the token {largest}, {kind} vocabulary has {vocab_size}{hint}"
        require(largest < vocab_size, "data.source", files.source, allowed)
        meta = {"source": files.facts, "vocab_size": vocab_size, "eos_id": files.eos_id, "dtype": files.dtype}
        write_record(partial / META, {**meta, "tokenizer": files.tokenizer, **sides})

    if not folder.exists():
        build_folder(folder, fill, notify)
    return folder


def _scan(files: TokenFiles, side: Any, ends_file: Path) -> tuple[dict[str, Any], int]:
    """(a side's entry in meta.json, its largest id); writes where the documents end."""
    path = files.file(side)
    tokens = np.memmap(path, files.dtype, mode="r")
    documents, checksum, ends_checksum, largest, last = 0, 0, 0, 0, 0
    try:
        with ends_file.open("wb") as out:
            for start in range(0, len(tokens), _CHUNK):
                chunk = np.asarray(tokens[start : start + _CHUNK])
                checksum, largest = zlib.crc32(chunk.data, checksum), max(largest, int(chunk.max()))
                ends = np.flatnonzero(chunk == files.eos_id).astype(np.int64) + start + 1
                out.write(ends.tobytes())
                ends_checksum = zlib.crc32(ends.tobytes(), ends_checksum)
                documents, last = documents + len(ends), int(ends[-1]) if len(ends) else last
            if last < len(tokens):  # the last document has no end
                end = np.int64(len(tokens)).tobytes()
                out.write(end)
                ends_checksum = zlib.crc32(end, ends_checksum)
                documents += 1
            out.flush()
            os.fsync(out.fileno())
    except OSError as error:
        if error.filename == str(path):
            raise ConfigError(f"data.source={files.source!r}: cannot read {path} ({error.strerror})") from None
        raise
    facts = {"file": str(path), "tokens": len(tokens), "documents": documents}
    return {**facts, "crc32": checksum, "ends_crc32": ends_checksum}, largest
