"""Tokenizers: what the rest of the library needs of one, and SentencePiece, set up to lose nothing.

Decoding gives back every text exactly. Plain SentencePiece comes close with byte fallback and no normalization; the
one character it confuses, the mark that it writes for a space, goes in as bytes.
"""

import hashlib
import io
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import sentencepiece

from mom_jax.fields import ConfigError, require
from train.files import write_whole

# Trained into every model; part of the cache's digest, so that changing one retires the old tokenizers.
SETTINGS: dict[str, Any] = {
    "model_type": "bpe",
    "byte_fallback": True,
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
    "allow_whitespace_only_pieces": True,
    "add_dummy_prefix": False,
    "unk_id": 0,
    "eos_id": 1,
    "bos_id": -1,
    "pad_id": -1,
    "max_sentence_length": 16384,
    "num_threads": 1,
}

# U+2581 stands for a space inside SentencePiece. A training text with NUL or U+2585 would be skipped whole.
_RESERVED = re.compile("([\0\u2581\u2585]+)")
# At most 4 bytes a character: no slice exceeds max_sentence_length, beyond which the trainer drops without a word.
_SLICE = 4096
# The pieces that every model has: unknown, end of document and the 256 bytes.
_FIXED_PIECES = 258


class Tokenizer(Protocol):
    """Text to token ids and back.

    vocab_size: ids are below it. eos_id: the token that ends a document; never the encoding of a text.
    fingerprint: the sha256 of the model; tokenizers with the same one are the same.
    """

    @property
    def vocab_size(self) -> int: ...

    @property
    def eos_id(self) -> int: ...

    @property
    def fingerprint(self) -> str: ...

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, without `eos_id`."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`; `eos_id` gives none, bytes that are not UTF-8 give U+FFFD."""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the file that `load` reads."""


class SentencePieceTokenizer:
    """A SentencePiece model, from the bytes of its `.model` file.

    Models of `train_sentencepiece` are lossless on all of Unicode. Raises `ConfigError` naming `data.tokenizer` for
    bytes that are no model and for a model without an end-of-sentence piece.
    """

    def __init__(self, model: bytes, name: str = "<bytes>") -> None:
        self._model = model
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            good = bool(model) and self._processor.LoadFromSerializedProto(model)
        except RuntimeError:
            good = False
        require(good, "data.tokenizer", name, "is not a SentencePiece model")
        self.vocab_size: int = self._processor.vocab_size()
        self.eos_id: int = self._processor.eos_id()
        require(self.eos_id >= 0, "data.tokenizer", name, "has no end-of-sentence piece to end documents with")
        self.fingerprint = hashlib.sha256(model).hexdigest()
        byte_ids = [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in range(256)]
        self._byte_ids = byte_ids if all(self._processor.is_byte(i) for i in byte_ids) else None

    def encode(self, text: str) -> list[int]:
        if self._byte_ids is None:
            return self._processor.encode(text)
        ids: list[int] = []
        for i, part in enumerate(_RESERVED.split(text)):
            ids += [self._byte_ids[byte] for byte in part.encode()] if i % 2 else self._processor.encode(part)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        return self._processor.decode([int(i) for i in ids])

    def save(self, path: str | os.PathLike[str]) -> None:
        write_whole(Path(path), self._model)


def load(path: str | os.PathLike[str]) -> Tokenizer:
    """Reads a `.model` file. Raises `ConfigError` naming `data.tokenizer` if it is missing or not a usable model."""
    try:
        model = Path(os.path.expanduser(path)).read_bytes()
    except OSError as error:
        allowed = f"cannot be read ({error.strerror}); use 'sentencepiece' or the path of a .model file"
        raise ConfigError(f"data.tokenizer={str(path)!r}: {allowed}") from None
    return SentencePieceTokenizer(model, str(path))


def train_sentencepiece(texts: Iterable[str], vocab_size: int) -> bytes:
    """Trains a byte-pair encoding of `vocab_size` pieces on `texts` and returns the bytes of its `.model` file.

    The same texts give the same bytes. All texts are held in memory. Raises `ConfigError` naming `data.vocab_size` if
    it is too small for the characters of the texts or larger than the texts have pieces, and `data.source` if they
    are empty.
    """
    require(vocab_size > _FIXED_PIECES, "data.vocab_size", vocab_size, f"must be more than {_FIXED_PIECES}")
    slices = list(_slices(texts))
    if not slices:
        raise ConfigError("data.source: there is no text to train a tokenizer on")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(slices), model_writer=model, vocab_size=vocab_size, minloglevel=3, **SETTINGS
        )
    except RuntimeError as error:
        raise ConfigError(f"data.vocab_size={vocab_size!r}: {_allowed(str(error))}") from None
    return model.getvalue()


def _slices(texts: Iterable[str]) -> Iterator[str]:
    """Texts as the trainer takes them: not too long, without reserved characters, not only line ends."""
    for text in texts:
        for part in _RESERVED.split(text)[::2]:
            for start in range(0, len(part), _SLICE):
                piece = part[start : start + _SLICE]
                if piece.strip("\r\n"):
                    yield piece


def _allowed(message: str) -> str:
    """The trainer's complaint in our words."""
    if found := re.search(r"set it to a value <= (\d+)", message):
        return f"must be at most {found[1]}, the training documents have no more pieces"
    if found := re.search(r"smaller than required_chars. \d+ vs (\d+)", message):
        return f"must be at least {found[1]} for the characters of the training documents"
    return f"the tokenizer cannot be trained ({message.strip()})"
