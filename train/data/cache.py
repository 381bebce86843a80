"""Token caches: every document tokenized once, kept as flat files that any number of processes can map.

A cache's folder is named by a digest of everything its contents depend on, is written beside its place and renamed
into it when whole. So a stale or half-written cache is never used, and deleting the folder is always safe.
"""

import dataclasses
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece

from mom_jax.fields import ConfigError
from train.config import DataConfig
from train.data.sources import Document, Source, check_split, is_held_out, open_source
from train.data.tokenizer import SETTINGS, Tokenizer, load, train_sentencepiece

# Part of every digest: raise it when the meaning of the files changes.
_FORMAT = 1


@dataclasses.dataclass(frozen=True, eq=False)
class TokenCache:
    """The tokens of some documents, each document followed by the tokenizer's `eos_id`.

    tokens: uint16 or uint32 [tokens], a read-only memory map of `tokens.bin`. starts: int64 [documents + 1], where
    each document begins and, last, where the tokens end (`documents.npy`). meta: `meta.json`.
    """

    folder: Path
    tokens: np.ndarray
    starts: np.ndarray
    meta: dict[str, Any]

    @property
    def num_tokens(self) -> int:
        return len(self.tokens)

    @property
    def num_documents(self) -> int:
        return len(self.starts) - 1

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> "TokenCache":
        """Opens a folder that `build` wrote; raises `ConfigError` if it is not whole."""
        folder = Path(folder)
        try:
            meta = json.loads((folder / "meta.json").read_text())
            dtype, count = np.dtype(meta["dtype"]), meta["tokens"]
            size = (folder / "tokens.bin").stat().st_size
            starts = np.load(folder / "documents.npy")
        except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
            raise _damaged(folder, f"{type(error).__name__}: {error}") from None
        if size != count * dtype.itemsize:
            raise _damaged(folder, f"tokens.bin has {size} bytes, not {count * dtype.itemsize}")
        good = starts.dtype == np.int64 and starts.shape == (meta.get("documents", 0) + 1,) and len(starts) > 1
        if not (good and starts[0] == 0 and starts[-1] == count and np.all(np.diff(starts) > 0)):
            raise _damaged(folder, "documents.npy does not fit meta.json")
        return cls(folder, np.memmap(folder / "tokens.bin", dtype, mode="r"), starts, meta)


def _damaged(folder: Path, why: str) -> ConfigError:
    return ConfigError(f"data.cache={str(folder)!r}: not a whole token cache ({why}); delete it to have it built again")


def build(
    folder: str | os.PathLike[str], documents: Iterable[Document], tokenizer: Tokenizer, meta: dict[str, Any]
) -> TokenCache:
    """Tokenizes `documents` into `folder`, or opens the folder if it exists already.

    meta: goes into `meta.json` beside the counts and the tokenizer's fingerprint. Raises `ConfigError` if there are no
    documents or the folder cannot be written.
    """
    folder = Path(folder)

    def fill(partial: Path) -> None:
        dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32)
        starts = [0]
        with open(partial / "tokens.bin", "wb") as file:
            for document in documents:
                ids = np.array([*tokenizer.encode(document.text), tokenizer.eos_id], dtype)
                file.write(ids.tobytes())
                starts.append(starts[-1] + len(ids))
        if len(starts) == 1:
            raise ConfigError("data.source: there are no documents to tokenize")
        np.save(partial / "documents.npy", np.array(starts, np.int64))
        facts = {
            **meta,
            "tokenizer": tokenizer.fingerprint,
            "vocab_size": tokenizer.vocab_size,
            "eos_id": tokenizer.eos_id,
            "dtype": dtype.name,
            "documents": len(starts) - 1,
            "tokens": starts[-1],
        }
        (partial / "meta.json").write_text(json.dumps(facts, indent=2) + "\n")

    _build_folder(folder, fill)
    return TokenCache.open(folder)


def _build_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """Makes `folder` with the files that `fill` writes, all or nothing; leaves it alone if it exists.

    Of processes that want the same folder one builds and the others wait. The system drops a dead process's lock, so
    whoever holds it knows that a partial folder lying there is nobody's.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with open(folder.with_name(f".{folder.name}.lock"), "ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if folder.exists():
                return
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            try:
                fill(partial)
                partial.rename(folder)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        allowed = f"must be a folder that can be written ({error.strerror})"
        raise ConfigError(f"data.cache={str(folder.parent)!r}: {allowed}") from None


@dataclasses.dataclass(frozen=True, eq=False)
class Prepared:
    """All that training needs of the data: the tokenizer and the tokens of both sides of the split."""

    tokenizer: Tokenizer
    train: TokenCache
    validation: TokenCache


def _silent(message: str) -> None:
    pass


def prepare(config: DataConfig, progress: Callable[[str], None] = _silent) -> Prepared:
    """Loads the tokenizer and the token caches of `config`, and makes what is not there yet under `config.cache`.

    progress: called with a line of text now and then while something is made; not at all when all is there. Raises
    `ConfigError` naming the field of `data` that cannot be: a source without documents, a missing tokenizer, a split
    with an empty side, a cache that cannot be written.
    """
    source = open_source(config.source)
    check_split(source.names, config.validation_fraction)
    # All that decides which documents are where.
    data = {
        "format": _FORMAT,
        "source": source.fingerprint(),
        "split": {"rule": "sha256 of the name", "validation_fraction": config.validation_fraction},
    }
    tokenizer = _prepare_tokenizer(config, source, data, progress)
    sides = [_prepare_side(config, source, data, tokenizer, side, progress) for side in ("train", "validation")]
    return Prepared(tokenizer, *sides)


def _prepare_tokenizer(
    config: DataConfig, source: Source, data: dict[str, Any], progress: Callable[[str], None]
) -> Tokenizer:
    if config.tokenizer != "sentencepiece":
        return load(config.tokenizer)
    recipe = {
        **data,
        "vocab_size": config.vocab_size,
        "settings": SETTINGS,
        "sentencepiece": sentencepiece.__version__,
    }
    folder = _root(config) / f"tokenizer-{_digest(recipe)}"

    def fill(partial: Path) -> None:
        progress(f"training a tokenizer of {config.vocab_size} pieces on {config.source}")
        texts = (document.text for document in _documents(config, source, "train"))
        (partial / "tokenizer.model").write_bytes(train_sentencepiece(texts, config.vocab_size))

    if not folder.exists():
        _build_folder(folder, fill)
    return load(folder / "tokenizer.model")


def _prepare_side(
    config: DataConfig,
    source: Source,
    data: dict[str, Any],
    tokenizer: Tokenizer,
    side: str,
    progress: Callable[[str], None],
) -> TokenCache:
    meta = {**data, "side": side}
    folder = _root(config) / f"{side}-{_digest({**meta, 'tokenizer': tokenizer.fingerprint})}"
    if folder.exists():
        return TokenCache.open(folder)
    total = sum(is_held_out(name, config.validation_fraction) == (side == "validation") for name in source.names)
    documents = _reported(_documents(config, source, side), f"tokenizing {config.source} ({side})", total, progress)
    return build(folder, documents, tokenizer, meta)


def _root(config: DataConfig) -> Path:
    return Path(os.path.expanduser(config.cache))


def _digest(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _documents(config: DataConfig, source: Source, side: str) -> Iterator[Document]:
    held_out = side == "validation"
    return (d for d in source.documents() if is_held_out(d.name, config.validation_fraction) == held_out)


def _reported(
    documents: Iterable[Document], what: str, total: int, progress: Callable[[str], None]
) -> Iterator[Document]:
    """Passes the documents on, with a line of progress ten times on the way."""
    for i, document in enumerate(documents):
        if i * 10 // total != (i - 1) * 10 // total:
            progress(f"{what}: {i} of {total} documents")
        yield document
