"""GLUE's examples from TFDS as rows of tokens."""

import dataclasses
from typing import Any

import numpy as np

from mom_jax.fields import ConfigError
from train.data.sources.tfds import decoded, read_examples
from train.data.tokenizers import Tokenizer
from train.tasks.batches import Example
from train.tasks.glue.tasks import Task


@dataclasses.dataclass(frozen=True)
class Split:
    """The examples of a split by their `index` in GLUE's files. labels: [N], None for a test split."""

    examples: list[Example]
    indices: list[int]
    labels: np.ndarray | None


def read_split(
    task: Task, builder: Any, split: str, tokenizer: Tokenizer, *, separator: str, length: int, limit: int
) -> Split:
    """Reads and tokenizes a split. limit: at most so many examples; 0 for all.

    Raises ConfigError naming `data.source` for an example without a label, other than in a test split, and for an
    empty split.
    """
    rows = sorted(read_examples(task.source, builder, split, limit), key=lambda row: row["idx"])
    if not rows:
        raise ConfigError(f"data.source={task.source!r}: split {split!r} is empty")
    texts = [
        tokenizer.encode_batch([decoded(task.source, split, int(row["idx"]), key, row[key]) for row in rows])
        for key in task.texts
    ]
    between = tokenizer.encode(separator)
    tokens = [join(parts, between, length) for parts in zip(*texts, strict=True)]
    indices = [int(row["idx"]) for row in rows]
    if split in task.test:
        return Split([Example(row) for row in tokens], indices, None)
    labels = np.array([row["label"] for row in rows], np.int64 if task.classes else np.float64)
    _check_labels(task, split, labels, indices)
    own = [int(label) if task.classes else float(label) for label in labels]
    return Split([Example(row, label) for row, label in zip(tokens, own, strict=True)], indices, labels)


def _check_labels(task: Task, split: str, labels: np.ndarray, indices: list[int]) -> None:
    unlabelled = np.flatnonzero(~(labels >= 0))
    if len(unlabelled):
        count = (
            f"{len(unlabelled)} of {len(labels)} examples without a label (-1), index {indices[unlabelled[0]]} first"
        )
        raise ConfigError(f"data.source={task.source!r}: split {split!r} has {count}")


def join(parts: tuple[np.ndarray, ...], separator: list[int], length: int) -> np.ndarray:
    """A sentence, or a pair with the separator between, as at most `length` tokens: the longer of the two loses its end
    first. A text without tokens becomes the separator, so that no row is empty."""
    room = length - len(separator) * (len(parts) - 1)
    if len(parts) == 1:
        row = parts[0][:room]
    else:
        first, second = parts
        keep_second = min(len(second), max(room - len(first), room // 2))
        keep_first = min(len(first), room - keep_second)
        row = np.concatenate([first[:keep_first], np.array(separator, np.int32), second[:keep_second]])
    return np.asarray(row if len(row) else separator, np.int32)
