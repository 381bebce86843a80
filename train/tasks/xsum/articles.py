"""XSUM's articles from TFDS as rows of tokens: document, separator, summary."""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from mom_jax.fields import ConfigError
from mom_jax.losses import IGNORE
from train.data.sources.tfds import decoded, read_examples
from train.data.tokenizers import Tokenizer
from train.tasks.batches import Example

SOURCE = "tfds:xsum"
_AT_ONCE = 4096


@dataclasses.dataclass(frozen=True)
class Format:
    """Where the tokens of an example go: at most `length`, of which the summary has at most `summary_length`, its end
    included. A document that is too long loses its end; the summary then fits in training and in generation alike."""

    tokenizer: Tokenizer
    separator: str
    length: int
    summary_length: int

    @property
    def between(self) -> np.ndarray:
        return np.array(self.tokenizer.encode(self.separator), np.int32)

    @property
    def room(self) -> int:
        """Tokens that a document may have."""
        return self.length - len(self.between) - self.summary_length

    def prompt(self, document: np.ndarray) -> np.ndarray:
        """What the model is to continue."""
        return np.concatenate([document[: self.room], self.between])

    def example(self, document: np.ndarray, summary: np.ndarray) -> Example:
        """A training example: the loss is on the summary and its end only."""
        prompt = self.prompt(document)
        ending = np.append(summary[: self.summary_length - 1], self.tokenizer.eos_id).astype(np.int32)
        label = np.concatenate([np.full(len(prompt), IGNORE, np.int32), ending])
        return Example(np.concatenate([prompt, ending]), label)


@dataclasses.dataclass(frozen=True)
class Article:
    """An article to sum up. prompt: its tokens and the separator's."""

    id: str
    document: str
    reference: str
    prompt: np.ndarray


def training_examples(builder: Any, form: Format, limit: int) -> list[Example]:
    """The training split, in the order of the articles' ids."""
    rows = _rows(builder, "train", limit)
    found = []
    for some in _groups(rows):
        documents, summaries = (form.tokenizer.encode_batch([row[key] for row in some]) for key in _TEXTS)
        pairs = zip(some, documents, summaries, strict=True)
        found += [(row["id"], form.example(document, summary)) for row, document, summary in pairs]
    return [example for _, example in _sorted(found, "train")]


def articles(builder: Any, split: str, form: Format, limit: int) -> list[Article]:
    """A held-out split, in the order of the articles' ids."""
    found = []
    for some in _groups(_rows(builder, split, limit)):
        documents = form.tokenizer.encode_batch([row["document"] for row in some])
        found += [
            (row["id"], Article(row["id"], row["document"], row["summary"], form.prompt(document)))
            for row, document in zip(some, documents, strict=True)
        ]
    return [article for _, article in _sorted(found, split)]


_TEXTS = ("document", "summary")


def _rows(builder: Any, split: str, limit: int) -> Iterator[dict[str, str]]:
    for index, row in enumerate(read_examples(SOURCE, builder, split, limit)):
        yield {key: decoded(SOURCE, split, index, key, row[key]) for key in (*_TEXTS, "id")}


def _groups(rows: Iterator[dict[str, str]]) -> Iterator[list[dict[str, str]]]:
    while some := list(itertools.islice(rows, _AT_ONCE)):
        yield some


def _sorted(found: list[tuple[str, Any]], split: str) -> list[tuple[str, Any]]:
    if not found:
        raise ConfigError(f"data.source={SOURCE!r}: split {split!r} is empty")
    return sorted(found, key=lambda pair: pair[0])
