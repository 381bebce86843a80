"""GPT-2's byte-level byte-pair encoding, by the library `tokenizers`.

A file contributes its vocabulary and its merges only: the rest is GPT-2's and fixed here, so that the same vocabulary
and merges are the same tokenizer whichever kind of file they come from. No text becomes `<|endoftext|>`, not even the
text "<|endoftext|>": Hugging Face's tokenizers give the separator's id for it.
"""

import hashlib
import itertools
import json
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from mom_jax.fields import ConfigError, require
from train.data.splitting import pieces
from train.files import parse_json, write_whole

EOS = "<|endoftext|>"

Merges = list[tuple[str, str]]

# The library is half as fast again on texts of about so many characters as on long ones.
_PIECE = 2000
# The characters by which GPT-2 writes bytes: printable ones as they are, the others in order from U+0100 on.
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHERS = [byte for byte in range(0x100) if byte not in _PRINTABLE]
_BYTES = {chr(byte): byte for byte in _PRINTABLE} | {chr(0x100 + i): byte for i, byte in enumerate(_OTHERS)}
# Pieces that a thread takes at once.
_GROUP = 64
# No token of GPT-2's goes on here. (For Python, but not for GPT-2, some control characters are white space too.)
_CUT = re.compile(r"(?<=\S)[ \n]")


class GPT2Tokenizer:
    """A byte-level BPE of GPT-2's kind, lossless on all of Unicode.

    vocabulary: token to id, with every byte's token and `<|endoftext|>`. merges: pairs of tokens, the first to be
    merged first. Raises `ConfigError` naming `field` for other vocabularies, and if `tokenizers` is not installed.
    """

    file_name = "tokenizer.json"

    def __init__(
        self, vocabulary: dict[str, int], merges: Merges, name: str = "<vocabulary>", field: str = "data.tokenizer"
    ) -> None:
        library = _library(name, field)
        lacking = [byte for byte in library.pre_tokenizers.ByteLevel.alphabet() if byte not in vocabulary]
        unknown = [pair for pair in merges if any(token not in vocabulary for token in (*pair, "".join(pair)))]
        ids = vocabulary.values()
        good = all(type(i) is int and 0 <= i < 2**31 for i in ids) and len(set(ids)) == len(ids)
        require(good, field, name, "must give every token an id of its own")
        require(not lacking, field, name, f"has no token for {len(lacking)} of the 256 bytes")
        require(EOS in vocabulary, field, name, f"has no {EOS} token to end documents with")
        if unknown:
            raise ConfigError(f"{field}={name!r}: merges {' and '.join(unknown[0])}, which its vocabulary has not")
        self.vocab_size = max(ids) + 1
        self.eos_id = vocabulary[EOS]
        facts = [sorted(vocabulary.items(), key=lambda item: item[1]), merges, EOS]
        self.fingerprint = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
        self._encoder = library.Tokenizer(library.models.BPE(vocab=vocabulary, merges=merges))
        self._encoder.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        self._encoder.decoder = library.decoders.ByteLevel()

    @classmethod
    def from_vocabulary(cls, vocabulary: bytes, merges: bytes, name: str, field: str) -> "GPT2Tokenizer":
        """From the contents of `vocab.json` and `merges.txt`."""
        table = _json(vocabulary, name, field)
        first, *lines = merges.decode(errors="replace").replace("\r\n", "\n").split("\n")
        lines = [line for line in ([] if first.startswith("#version") else [first]) + lines if line]
        require(all(line.count(" ") == 1 for line in lines), field, name, "has merges that are not two tokens a line")
        return cls(table, _pairs(lines), name, field)

    @classmethod
    def from_json(cls, content: bytes, name: str, field: str) -> "GPT2Tokenizer":
        """From the contents of `tokenizer.json`."""
        record = _json(content, name, field)
        try:
            why = _difference(record)
            require(not why, field, name, f"must be a byte-level BPE as GPT-2's: it has {why}")
            added = {token["content"]: token["id"] for token in record.get("added_tokens") or ()}
            return cls({**record["model"]["vocab"], **added}, _pairs(record["model"]["merges"]), name, field)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            message = f"is not a whole tokenizer.json ({type(error).__name__}: {error})"
            raise ConfigError(f"{field}={name!r}: {message}") from None

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for part in pieces(text, _CUT, _PIECE):
            ids += self._encoder.encode(part, add_special_tokens=False).ids
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        split = [list(pieces(text, _CUT, _PIECE)) for text in texts]
        parts = list(itertools.chain.from_iterable(split))
        groups = [parts[start : start + _GROUP] for start in range(0, len(parts), _GROUP)]
        with ThreadPoolExecutor(_cores()) as pool:
            ids = itertools.chain.from_iterable(pool.map(self._encode_group, groups))
            return [np.concatenate(list(itertools.islice(ids, len(own)))) for own in split]

    def decode(self, ids: Sequence[int]) -> str:
        return self._encoder.decode([int(i) for i in ids if i != self.eos_id])

    def piece(self, token: int) -> str:
        name = self._encoder.id_to_token(token)
        if token == self.eos_id or name is None or not set(name) <= _BYTES.keys():
            return name or ""
        return bytes(_BYTES[character] for character in name).decode(errors="backslashreplace")

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes the `tokenizer.json` of Hugging Face, where `<|endoftext|>` is a special token."""
        from tokenizers import Tokenizer

        whole = Tokenizer.from_str(self._encoder.to_str())
        whole.add_special_tokens([EOS])
        write_whole(Path(folder) / self.file_name, whole.to_str().encode())

    def _encode_group(self, parts: list[str]) -> list[np.ndarray]:
        # Of the library's functions this one lets other Python threads run.
        encodings = self._encoder.encode_batch_fast(parts, add_special_tokens=False)
        return [np.array(encoding.ids, np.int32) for encoding in encodings]


def _library(name: str, field: str) -> Any:
    # Threads of the library's own would not live on in a forked process, of which it warns; ours are made as needed.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        import tokenizers
    except ImportError:
        message = "needs the package tokenizers: pip install 'tokenizers>=0.22'"
        raise ConfigError(f"{field}={name!r}: {message}") from None
    return tokenizers


def _json(content: bytes, name: str, field: str) -> dict[str, Any]:
    try:
        record = parse_json(content, f"{field}={name!r}")
    except ConfigError:
        record = None
    require(isinstance(record, dict), field, name, "is not a JSON object")
    return record


def _pairs(merges: Sequence[str | Sequence[str]]) -> Merges:
    """Of a line of `merges.txt`, or of either form in `tokenizer.json`: "a b" and ["a", "b"]."""
    pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in merges)
    return [(first, second) for first, second in pairs]


def _difference(record: dict[str, Any]) -> str:
    """What a `tokenizer.json` has that would lose text or give other ids than GPT-2's way; empty if nothing."""
    model, before, after = record["model"], record.get("pre_tokenizer") or {}, record.get("decoder") or {}
    # The oldest files give no type; they are BPE.
    kind = model.get("type", "BPE")
    if kind != "BPE":
        return f"a {kind} model"
    if record.get("normalizer"):
        return f"a normalizer ({record['normalizer'].get('type')})"
    if before.get("type") != "ByteLevel" or not before.get("use_regex", True):
        return f"another pre_tokenizer ({before.get('type')})"
    if before.get("add_prefix_space", True):
        return "add_prefix_space, which adds to the text"
    if after.get("type") != "ByteLevel":
        return f"another decoder ({after.get('type')})"
    for option in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "ignore_merges"):
        if model.get(option):
            return f"model.{option}={model[option]!r}"
    return ""


def _cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
