"""A tokenizer whose tokens can be told apart at a glance, and caches made with it."""

import dataclasses
from pathlib import Path

import numpy as np

from train.config import DataConfig
from train.data.cache import TokenCache
from train.data.documents import SIDES, Document, Part, Side, Source
from train.data.encode import encode
from train.data.prepared import Prepared


class Letters:
    """Every character is its own token; documents end with 0."""

    vocab_size = 60_000
    eos_id = 0
    fingerprint = "letters"
    file_name = "letters"

    def encode(self, text: str) -> list[int]:
        return [ord(character) for character in text]

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        return [np.array(self.encode(text), np.int64) for text in texts]

    def decode(self, ids) -> str:
        return "".join(chr(i) for i in ids if i)


def source(documents: list[Document], side=None, name: str = "test") -> Source:
    """A source of one part."""
    return Source(name, (Part("all", len(documents), lambda: iter(documents), side),), {"source": name})


def numbered(first: int, tokens: int) -> list[Document]:
    """Documents of 7 and a rest, `tokens` different tokens in all, from `first` on."""
    text = "".join(map(chr, range(first, first + tokens)))
    return [Document(str(i), text[i : min(i + 6, tokens - 1)]) for i in range(0, tokens, 7)]


def make_prepared(folder: Path, *sizes: int, weights: tuple[float, ...] = (1.0,)) -> Prepared:
    """Sources of so many tokens, all different; both sides of the split have the same."""
    caches = {"train": [], "validation": []}
    first = 1
    for i, size in enumerate(sizes):
        documents = numbered(first, size)
        both = Source(
            str(i),
            tuple(Part(side, 1, lambda documents=documents: iter(documents), side) for side in caches),
            {"source": str(i)},
        )
        encode(folder / str(i), both, Letters(), 0.1, {}, lambda share, tokens: None)
        for side, found in caches.items():
            found.append(TokenCache.open(folder / str(i), side))
        first += size
    names = tuple(str(i) for i in range(len(sizes)))
    return Prepared(Letters(), names, weights, tuple(caches["train"]), tuple(caches["validation"]))


def build(folder: Path, source: Source) -> dict[Side, TokenCache]:
    """The caches of both sides; of a source without splits 0.3 of the documents are held out."""
    encode(folder, source, Letters(), 0.3, {}, lambda share, tokens: None)
    return {side: TokenCache.open(folder, side) for side in SIDES}


def data(**changes) -> DataConfig:
    return dataclasses.replace(DataConfig(batch_size=4, length=5), **changes)
