"""The text that a model is analysed on, in batches: what a run holds out, or a source's documents, read as a stream."""

from collections.abc import Iterator

import numpy as np

from train.batch import Rows
from train.config import DataConfig
from train.data.pipeline import validation_batches
from train.data.prepared import Prepared
from train.data.texts import documents_of
from train.data.tokenizers import Tokenizer


def held_out(prepared: Prepared, data: DataConfig, tokens: int) -> Iterator[Rows]:
    """Held-out sequences of about so many tokens, spread evenly, always the same; `data.batch_size` rows a batch."""
    return validation_batches(prepared, data, limit=max(1, -(-tokens // (data.batch_size * data.length))))


def of_source(source: str, tokenizer: Tokenizer, *, length: int, rows: int, packed: bool) -> Iterator[Rows]:
    """The documents of a source one after another, each with the token that ends it, cut into sequences of `length`.

    packed: documents do not see each other. rows: of a batch; the last batch is filled up with padding. Raises
    ConfigError naming `data.source` for what is no source of documents.
    """
    batch: list[tuple[np.ndarray, np.ndarray]] = []
    ids, documents = np.zeros(0, np.int32), np.zeros(0, np.int32)
    for number, text in enumerate(documents_of(source)):
        own = [*tokenizer.encode(text.text), *([tokenizer.eos_id] if tokenizer.eos_id >= 0 else [])]
        ids = np.concatenate([ids, np.asarray(own, np.int32)])
        documents = np.concatenate([documents, np.full(len(own), number, np.int32)])
        while len(ids) >= length:
            batch.append((ids[:length], documents[:length]))
            ids, documents = ids[length:], documents[length:]
            if len(batch) == rows:
                yield _batch(batch, length, rows, packed)
                batch = []
    if len(ids):
        batch.append((ids, documents))
    if batch:
        yield _batch(batch, length, rows, packed)


def _batch(sequences: list[tuple[np.ndarray, np.ndarray]], length: int, rows: int, packed: bool) -> Rows:
    tokens, segments = (np.zeros((rows, length), np.int32) for _ in range(2))
    positions = np.zeros((rows, length), np.int32)
    for row, (ids, documents) in enumerate(sequences):
        tokens[row, : len(ids)] = ids
        first = np.r_[True, documents[1:] != documents[:-1]]
        segments[row, : len(ids)] = np.cumsum(first)
        place = np.arange(len(ids))
        positions[row, : len(ids)] = place - np.maximum.accumulate(np.where(first, place, 0))
    if packed:
        return {"tokens": tokens, "segment_ids": segments, "positions": positions}
    return {"tokens": tokens, "mask": segments > 0}
