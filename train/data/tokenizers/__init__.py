"""Tokenizers: what the rest of the library needs of one, and reading one from its file.

Decoding gives back every text exactly: for SentencePiece models trained here (`spm.py`), and for GPT-2's encoding
(`gpt2.py`).
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from mom_jax.fields import ConfigError
from train.data.tokenizers.gpt2 import GPT2Tokenizer
from train.data.tokenizers.spm import SentencePieceTokenizer
from train.data.tokenizers.token_ids import IdsTokenizer
from train.files import read_bytes

# The names under which GPT-2's merges lie beside its vocabulary.
_MERGES = {"vocab.json": "merges.txt", "encoder.json": "vocab.bpe"}
# In a folder the first of these counts.
_NAMES = (SentencePieceTokenizer.file_name, GPT2Tokenizer.file_name, *_MERGES, IdsTokenizer.file_name)


class Tokenizer(Protocol):
    """Text to token ids and back.

    vocab_size: ids are below it. eos_id: the token that ends a document, never the encoding of a text; -1 if there is
    none. fingerprint: a sha256; tokenizers with the same one are the same. file_name: of what `save` writes.
    """

    @property
    def vocab_size(self) -> int: ...

    @property
    def eos_id(self) -> int: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def file_name(self) -> str: ...

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, without `eos_id`."""

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of each text, int32, as `encode` gives them; on all cores."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`; `eos_id` gives none, bytes that are not UTF-8 give U+FFFD."""

    def piece(self, token: int) -> str:
        """The text of one token, for people: bytes that are not UTF-8 by themselves as `\\xe2`, and the name of a token
        that has no text, such as `</s>`."""

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes `file_name` into the folder, whole; `load` and `find` know it."""


def load(path: str | os.PathLike[str], *, field: str = "data.tokenizer") -> Tokenizer:
    """Reads a tokenizer from its file, or from a folder that has one.

    `vocab.json` and `encoder.json` are GPT-2's vocabulary, with the merges beside it; `vocabulary.json` is what
    `IdsTokenizer` saves; other `.json` files are Hugging Face's `tokenizer.json`; whatever else is a SentencePiece
    model. Raises `ConfigError` naming `field` if a file is missing or no usable tokenizer.
    """
    name, file = str(path), Path(os.path.expanduser(path))
    if file.is_dir():
        found = find(file)
        if found is None:
            raise ConfigError(f"{field}={name!r}: this folder has no tokenizer ({', '.join(_NAMES)})")
        file = found
    content = _read(file, name, field)
    if file.name in _MERGES:
        merges = _read(file.with_name(_MERGES[file.name]), name, field)
        return GPT2Tokenizer.from_vocabulary(content, merges, name, field)
    if file.name == IdsTokenizer.file_name:
        return IdsTokenizer.from_json(content, name, field)
    if file.suffix == ".json":
        return GPT2Tokenizer.from_json(content, name, field)
    return SentencePieceTokenizer(content, name, field)


def find(folder: str | os.PathLike[str]) -> Path | None:
    """The tokenizer's file in a folder, if there is one. A vocabulary without its merges is none."""
    for name in _NAMES:
        files = [Path(folder) / part for part in (name, _MERGES.get(name)) if part]
        if all(file.is_file() for file in files):
            return files[0]
    return None


def pieces(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str] | None:
    """Each id's own text, white space included: "" for what has none, as the end of a document, and U+FFFD for bytes
    that are no character by themselves. None for a tokenizer that only knows ids."""
    if isinstance(tokenizer, IdsTokenizer):
        return None
    # After a letter: at the beginning of a text some tokenizers leave out a space.
    letter = tokenizer.encode("a")
    start = len(tokenizer.decode(letter))
    known = {i: tokenizer.decode([*letter, i])[start:] for i in {int(i) for i in ids} if i < tokenizer.vocab_size}
    return [known.get(int(i), "") for i in ids]


def _read(file: Path, name: str, field: str) -> bytes:
    missing = "" if file.name == Path(name).name else f"{file.name} "
    try:
        return read_bytes(file, missing)
    except ConfigError as error:
        why = str(error).removeprefix(f"{missing}: ")
        usable = "use 'sentencepiece', a .model file, tokenizer.json, vocab.json with merges.txt, or a folder with one"
        raise ConfigError(f"{field}={name!r}: {missing}{why}; {usable}") from None
