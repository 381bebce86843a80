"""SentencePiece, set up to lose nothing.

Plain SentencePiece comes close to giving back every text with byte fallback and no normalization; the one character
that it confuses, the mark that it writes for a space, goes in as bytes.
"""

import hashlib
import io
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece

from mom_jax.fields import ConfigError, require
from train.data.splitting import pieces
from train.files import write_whole
from train.process import interrupts

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
# SentencePiece is faster on texts of about so many characters than on long ones, and spreads them over the cores.
_PIECE = 1000
# A space after something else begins a piece, in models trained here.
_CUT = re.compile("(?<=[^ ]) ")
# At most 4 bytes a character: no slice exceeds max_sentence_length, beyond which the trainer drops without a word.
_SLICE = 4096
# The pieces that every model has: unknown, end of document and the 256 bytes.
_FIXED_PIECES = 258


class SentencePieceTokenizer:
    """A SentencePiece model, from the bytes of its `.model` file.

    Models of `train_sentencepiece` are lossless on all of Unicode. Raises `ConfigError` naming `field` for bytes that
    are no model and for a model without an end-of-sentence piece.
    """

    file_name = "tokenizer.model"

    def __init__(self, model: bytes, name: str = "<bytes>", field: str = "data.tokenizer") -> None:
        self._model = model
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            good = bool(model) and self._processor.LoadFromSerializedProto(model)
            size = self._processor.vocab_size() if good else 0
            names = [self._processor.id_to_piece(i) for i in range(size)]
            spaced = self._processor.normalize(" a  b ") if good else ""
        except (RuntimeError, UnicodeError):  # a damaged model's pieces may be no texts
            good = False
        require(good, field, name, "is not a SentencePiece model")
        self.vocab_size: int = size
        self.eos_id: int = self._processor.eos_id()
        require(self.eos_id >= 0, field, name, "has no end-of-sentence piece to end documents with")
        self.fingerprint = hashlib.sha256(model).hexdigest()
        byte_ids = [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in range(256)]
        self._byte_ids = byte_ids if all(self._processor.is_byte(i) for i in byte_ids) else None
        crossing = any("\u2581" in piece.lstrip("\u2581") for piece in names)
        # Other models may also begin a text with a space of their own, or drop spaces at its ends.
        self._can_cut = not crossing and spaced == "\u2581a\u2581\u2581b\u2581"

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for part, reserved in self._parts(text):
            ids += self._as_bytes(part) if reserved else self._processor.encode(part)
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        split = [list(self._parts(text)) for text in texts]
        plain = [part for parts in split for part, reserved in parts if not reserved]
        encoded = iter(self._processor.encode(plain, return_type="numpy"))

        def ids(part: str, reserved: bool) -> np.ndarray:
            return np.array(self._as_bytes(part), np.int32) if reserved else next(encoded)

        return [np.concatenate([ids(*part) for part in parts]) for parts in split]

    def decode(self, ids: Sequence[int]) -> str:
        return self._processor.decode([int(i) for i in ids])

    def piece(self, token: int) -> str:
        name: str = self._processor.id_to_piece(token)
        if self._processor.is_byte(token):
            return bytes([int(name[3:5], 16)]).decode(errors="backslashreplace")
        return name.replace("\u2581", " ")

    def save(self, folder: str | os.PathLike[str]) -> None:
        write_whole(Path(folder) / self.file_name, self._model)

    def _parts(self, text: str) -> Iterator[tuple[str, bool]]:
        """The text in order, and whether a part of it goes in as bytes."""
        for i, part in enumerate([text] if self._byte_ids is None else _RESERVED.split(text)):
            if i % 2:
                yield part, True
            elif self._can_cut:
                yield from ((piece, False) for piece in pieces(part, _CUT, _PIECE))
            else:
                yield part, False

    def _as_bytes(self, text: str) -> list[int]:
        assert self._byte_ids is not None
        return [self._byte_ids[byte] for byte in text.encode()]


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
    options: dict[str, Any] = {
        "sentence_iterator": iter(slices),
        "model_writer": model,
        "vocab_size": vocab_size,
        "minloglevel": 3,
    }
    try:
        interrupts.apart(lambda: sentencepiece.SentencePieceTrainer.train(**options, **SETTINGS))
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
