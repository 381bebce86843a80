"""Batches of examples of different lengths: padded on the right to few lengths, so that few programs are compiled."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from mom_jax.losses import IGNORE
from train.batch import Rows

SHORTEST = 32  # tokens; the lengths are this, its double, and so on up to the longest


@dataclasses.dataclass(frozen=True)
class Example:
    """tokens: int32 [L], the row without padding. label: of the whole row, a class's number or a number; or of the
    tokens, int32 [L] with -100 where none counts; or None."""

    tokens: np.ndarray
    label: int | float | np.ndarray | None = None


def bucket(length: int, longest: int) -> int:
    """The length to which a batch is padded whose longest row has `length` tokens, at most `longest`."""
    size = SHORTEST
    while size < length:
        size *= 2
    return min(size, longest)


def make_batch(examples: Sequence[Example], rows: int, longest: int) -> Rows:
    """A batch for the train step, [rows, length of the bucket]; rows without an example are all padding."""
    length = bucket(max(len(example.tokens) for example in examples), longest)
    tokens, mask = np.zeros((rows, length), np.int32), np.zeros((rows, length), np.bool_)
    for row, example in enumerate(examples):
        tokens[row, : len(example.tokens)], mask[row, : len(example.tokens)] = example.tokens, True
    batch: Rows = {"tokens": tokens, "mask": mask}
    labels: list[Any] = [example.label for example in examples]
    if isinstance(labels[0], np.ndarray):
        batch["labels"] = np.full((rows, length), IGNORE, np.int32)
        for row, label in enumerate(labels):
            batch["labels"][row, : len(label)] = label
    elif isinstance(labels[0], float):
        batch["targets"] = np.zeros(rows, np.float32)
        batch["targets"][: len(labels)] = labels
    elif labels[0] is not None:
        batch["classes"] = np.zeros(rows, np.int32)
        batch["classes"][: len(labels)] = labels
    return batch


def training_batches(examples: Sequence[Example], rows: int, longest: int, epochs: int, seed: int) -> Iterator[Rows]:
    """Every example once in every epoch, in an order of the epoch's own; an epoch's last batch may have empty rows."""
    for epoch in range(epochs):
        order = np.random.default_rng((seed, epoch)).permutation(len(examples))
        for start in range(0, len(order), rows):
            yield make_batch([examples[i] for i in order[start : start + rows]], rows, longest)


def by_length(lengths: Sequence[int], rows: int) -> list[np.ndarray]:
    """Batches of indices of rows of similar length, for evaluation: little padding, and the same batches every time."""
    order = np.argsort(np.asarray(lengths), kind="stable")
    return [order[start : start + rows] for start in range(0, len(order), rows)]
