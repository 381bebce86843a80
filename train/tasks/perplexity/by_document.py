"""Perplexity of whole documents, by non-overlapping or sliding windows: per token, document, byte and word.

A document of the tokens t_1 .. t_n is scored by itself. Before t_1 stands the tokenizer's separator t_0. It is no part
of the text: neither it nor the separator after t_n is scored. Each of t_1 .. t_n is, exactly once.

The windows are those of Hugging Face's guide for models of fixed length (transformers, docs/source/en/perplexity.md):
window i has the inputs t_s .. t_(s + length - 1) with s = i · stride, as far as the document goes, and predicts the
token after each; of these the ones that no earlier window has predicted are scored. So from the second window on
`stride` tokens are scored (in the last one perhaps fewer), each given more than `length - stride` tokens. With stride =
length no two windows share an input, and a window's first prediction sees one token only. (The guide shifts the labels
inside the window, and so loses one token of every non-overlapping window; here none is lost.)

With NLL the sum of -log p over all scored tokens, in nats:

per token     loss = NLL / tokens; perplexity = exp(loss). Tokenizers cannot be compared by it.
per document  exp(NLL_d / tokens_d) for each document d; `document_perplexity` is their mean.
per byte      bits per byte = NLL / (ln 2 · bytes); byte perplexity = exp(NLL / bytes); bytes: of the original texts in
              UTF-8, the same whatever the tokenizer.
per word      exp(NLL / words), words as lm-eval counts them: the parts of re.split(r"\\s+", text).

Sums, not means of means: the last two are lm-eval's `bits_per_byte`, `byte_perplexity` and `word_perplexity`, whose
windows (`loglikelihood_rolling`) differ in the last one only, which there has as much context as fits.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from mom_jax.config import ModelConfig
from mom_jax.fields import ConfigError, check_types, require
from train.data.texts import Text
from train.data.tokenizers import Tokenizer
from train.numbers import NumbersError
from train.reporting.tables import markdown
from train.tasks.perplexity.scores import Scorer, Window
from train.training.validation import exp

# Characters of documents that are tokenized and sorted together.
GROUP = 2**21


@dataclasses.dataclass(frozen=True)
class PerplexityConfig:
    """How documents are cut into windows.

    Attributes:
        length: the inputs of a window, in tokens; 0 is the model's context.
        stride: how many tokens the next window begins later; 0 is `length`: windows do not overlap.
    """

    length: int = 0
    stride: int = 0

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("length", "stride"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "must be at least 0")

    def sizes(self, model: ModelConfig) -> tuple[int, int]:
        """(length, stride) for a model. Raises ConfigError for what it cannot do."""
        context = model.context_length
        length = self.length or context
        require(length <= context, "length", self.length, f"must be at most the model's context of {context}")
        stride = self.stride or length
        require(stride <= length, "stride", self.stride, f"must be at most the windows' length of {length}")
        return length, stride


@dataclasses.dataclass(frozen=True)
class DocumentScore:
    """nll: the sum of -log p over the document's tokens, nats. tokens, bytes, words: how many it has."""

    name: str
    nll: float
    tokens: int
    bytes: int
    words: int

    @property
    def perplexity(self) -> float:
        return exp(self.nll / self.tokens)

    def record(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "perplexity": self.perplexity}


@dataclasses.dataclass(frozen=True)
class Perplexity:
    """Of all documents; those without a token are left out. length, stride: of the windows, in tokens."""

    documents: tuple[DocumentScore, ...]
    length: int
    stride: int

    def record(self) -> dict[str, Any]:
        """The figures that this module's docstring defines, and what they are made of. Raises NumbersError for a
        document whose loss is no number."""
        for document in self.documents:
            if not math.isfinite(document.nll):
                raise NumbersError(f"document {document.name!r}: its loss is {document.nll}")
        nll = math.fsum(document.nll for document in self.documents)
        tokens, size, words = (
            sum(getattr(document, name) for document in self.documents) for name in ("tokens", "bytes", "words")
        )
        each = [document.perplexity for document in self.documents]
        return {
            "loss": nll / tokens,
            "perplexity": exp(nll / tokens),
            "document_perplexity": sum(each) / len(each),
            "bits_per_byte": nll / (math.log(2) * size),
            "byte_perplexity": exp(nll / size),
            "word_perplexity": exp(nll / words),
            "tokens": tokens,
            "documents": len(each),
            "bytes": size,
            "words": words,
            "length": self.length,
            "stride": self.stride,
        }


def windows(tokens: Sequence[int], separator: int, length: int, stride: int) -> Iterator[Window]:
    """The windows of one document's tokens, in order; together they score every token once."""
    whole = [separator, *tokens]
    scored = start = 0
    while scored < len(tokens):
        end = min(start + length, len(tokens))
        yield Window(whole[start : end + 1], end - scored)
        scored, start = end, start + stride


def perplexity(
    scorer: Scorer,
    tokenizer: Tokenizer,
    texts: Iterable[Text],
    config: PerplexityConfig,
    *,
    progress: Callable[[int], None] = lambda tokens: None,
) -> Perplexity:
    """Scores documents. progress: told after every batch how many tokens have been scored.

    Raises ConfigError for windows that the model cannot have, a tokenizer without a separator, and where no document
    has a token.
    """
    length, stride = config.sizes(scorer.config)
    require(tokenizer.eos_id >= 0, "tokenizer", tokenizer.file_name, "has no token to begin documents with")
    documents: list[DocumentScore] = []
    count = 0

    def done(batch: Sequence[Window]) -> None:
        nonlocal count
        count += sum(window.scored for window in batch)
        progress(count)

    for group in _groups(texts):
        ids = tokenizer.encode_batch([text.text for text in group])
        cut = [list(windows(own.tolist(), tokenizer.eos_id, length, stride)) for own in ids]
        scores = iter(scorer.score([window for own in cut for window in own], done))
        for text, own, parts in zip(group, ids, cut, strict=True):
            nll = -math.fsum(next(scores).log_likelihood for _ in parts)
            if len(own):
                size, words = len(text.text.encode()), len(re.split(r"\s+", text.text))
                documents.append(DocumentScore(text.name, nll, len(own), size, words))
    if not documents:
        raise ConfigError("data.source: has no document with a token in it")
    return Perplexity(tuple(documents), length, stride)


def _groups(texts: Iterable[Text]) -> Iterator[list[Text]]:
    """Documents of about `GROUP` characters."""
    group: list[Text] = []
    size = 0
    for text in texts:
        group.append(text)
        size += len(text.text)
        if size >= GROUP:
            yield group
            group, size = [], 0
    if group:
        yield group


def table(records: Sequence[tuple[str, dict[str, Any]]]) -> str:
    """A Markdown table of `Perplexity.record`s, a row for each named one."""
    headers = ("checkpoint", "tokens", "documents", "nats/token", "perplexity", "per document", "bits/byte", "per byte")
    rows = [
        (
            *(name, f"{r['tokens']:,}", f"{r['documents']:,}", f"{r['loss']:.4f}", f"{r['perplexity']:.2f}"),
            *(f"{r['document_perplexity']:.2f}", f"{r['bits_per_byte']:.4f}", f"{r['byte_perplexity']:.4f}"),
        )
        for name, r in records
    ]
    return markdown(headers, rows)
