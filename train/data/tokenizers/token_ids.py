"""The tokenizer of token files that came without one: all that is known is how many ids there are."""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from mom_jax.fields import MOST, ConfigError
from train.data.documents import NO_EOS
from train.files import parse_json, write_whole


class IdsTokenizer:
    """Shows ids as numbers and cannot encode.

    vocab_size: ids are below it. eos_id: the token that ends a document; -1 or None if no token does.
    """

    file_name = "vocabulary.json"

    def __init__(self, vocab_size: int, eos_id: int | None = None) -> None:
        self.vocab_size = vocab_size
        self.eos_id = NO_EOS if eos_id is None else eos_id
        self._content = json.dumps({"vocab_size": self.vocab_size, "eos_id": self.eos_id}).encode() + b"\n"
        self.fingerprint = hashlib.sha256(self._content).hexdigest()

    @classmethod
    def from_json(cls, content: bytes, name: str, field: str) -> "IdsTokenizer":
        """Reads what `save` wrote; raises `ConfigError` naming `field` for anything else."""
        try:
            record = parse_json(content, f"{field}={name!r}")
        except ConfigError:
            record = None
        size, eos = (record.get("vocab_size"), record.get("eos_id")) if isinstance(record, dict) else (None, None)
        if type(size) is not int or type(eos) is not int or not NO_EOS <= eos < size <= MOST:
            raise ConfigError(f"{field}={name!r}: must have a vocab_size and an eos_id below it (-1 for none)")
        return cls(size, eos)

    def encode(self, text: str) -> NoReturn:
        why = "the data were token files without one; train with data.tokenizer, or with a tokenizer beside the files"
        raise ConfigError(f"data.tokenizer: there is none to encode a text with: {why}")

    def encode_batch(self, texts: Sequence[str]) -> NoReturn:
        self.encode("")

    def decode(self, ids: Sequence[int]) -> str:
        """The ids themselves, in decimal, with spaces between."""
        return " ".join(str(int(i)) for i in ids)

    def piece(self, token: int) -> str:
        return str(int(token))

    def save(self, folder: str | os.PathLike[str]) -> None:
        write_whole(Path(folder) / self.file_name, self._content)
