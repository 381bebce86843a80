"""Batches of sequences from token caches.

The order of training is a pure function of (seed, epoch, index): no state but the number of examples seen, whatever
the number of processes or the batch size.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import grain
import numpy as np

from mom_jax.fields import require
from train.batch import Rows
from train.config import DataConfig
from train.data.cache import TokenCache, describe_left_out
from train.data.packing import Packing, pack
from train.data.prepared import Prepared

# Elements are whole batches from memory or a memory map: a short queue hides the reading, more threads only compete.
_PREFETCH = grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)


class Examples(Protocol):
    """Random access to the sequences of a cache; what grain calls a data source."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Rows: ...

    def describe(self) -> str:
        """What of the cache is where, for the user."""


class Windows:
    """The tokens of all documents, one after another, cut into windows: `tokens` int32 [length]."""

    def __init__(self, cache: TokenCache, length: int) -> None:
        self._cache, self._length = cache, length

    def __len__(self) -> int:
        return self._cache.num_tokens // self._length

    def __getitem__(self, index: int) -> Rows:
        start = int(index) * self._length
        tokens = self._cache.tokens[start : start + self._length].astype(np.int32)
        return {"tokens": self._cache.checked(tokens)}

    def describe(self) -> str:
        rest = self._cache.num_tokens % self._length
        return f"{self._cache.num_tokens:,} tokens in {len(self):,} sequences of {self._length}, {rest:,} left over"


class PackedDocuments:
    """Whole documents side by side: `tokens`, `segment_ids` (0 is padding) and `positions`, int32 [length] each."""

    def __init__(self, cache: TokenCache, length: int) -> None:
        self._cache, self.packing = cache, _packed(cache, length)

    def __len__(self) -> int:
        return self.packing.num_windows

    def __getitem__(self, index: int) -> Rows:
        window = self.packing.window(int(index), self._cache.tokens)
        self._cache.checked(window["tokens"])
        return window

    def describe(self) -> str:
        packing = self.packing
        return (
            f"{packing.tokens:,} tokens of {self._cache.num_documents:,} documents in {len(self):,} sequences of "
            f"{packing.length}, {packing.padding:.2%} padding; {packing.cut:,} longer documents are cut"
        )


@functools.lru_cache(maxsize=64)
def _packed(cache: TokenCache, length: int) -> Packing:
    """Kept for the next evaluation."""
    return pack(cache.starts, length)


def examples(cache: TokenCache, data: DataConfig) -> Examples:
    """The sequences of a cache. Raises `ConfigError` if there is none."""
    if data.packing == "documents":
        return PackedDocuments(cache, data.length)
    windows = Windows(cache, data.length)
    require(len(windows) >= 1, "data.length", data.length, f"{cache.file} has {cache.num_tokens} tokens only")
    return windows


class TrainingData:
    """The training side of prepared data as endless shuffled batches.

    Example i of a source is the sequence at i % n of the shuffle of epoch i // n, so that every epoch has every one of
    its n sequences once and batches may span two epochs. A mixture takes its examples from the sources in turn, as
    often as their weights say; each has its own epochs.

    Raises `ConfigError` if a source has no sequence.
    """

    def __init__(self, prepared: Prepared, data: DataConfig) -> None:
        self._data, self.names, self.weights = data, prepared.names, prepared.weights
        self.sources = [examples(cache, data) for cache in prepared.train]
        self._left_out = [cache.left_out for cache in prepared.train]
        # Grain adds the epoch to the seed: neighbouring seeds are spread first, or seed 1 would follow seed 0 by an
        # epoch. NumPy promises that these values never change; grain makes no such promise for its own default seeds.
        seeds = np.random.SeedSequence(data.seed).generate_state(len(self.sources))
        endless = [
            grain.MapDataset.source(source).shuffle(seed=int(seed)).repeat()
            for source, seed in zip(self.sources, seeds, strict=True)
        ]
        self._examples = endless[0] if len(endless) == 1 else grain.MapDataset.mix(endless, self.weights)

    def describe(self) -> list[str]:
        """A line for each source."""
        lines = [f"{name}: {source.describe()}" for name, source in zip(self.names, self.sources, strict=True)]
        return [
            line if not left_out else f"{line}; {describe_left_out(left_out)}"
            for line, left_out in zip(lines, self._left_out, strict=True)
        ]

    def epochs(self, examples_seen: int) -> dict[str, float]:
        """How often each source has been gone through after so many examples."""
        shares = zip(self.names, self.weights, self.sources, strict=True)
        return {name: examples_seen * weight / len(source) for name, weight, source in shares}

    def batches(
        self, *, examples_seen: int, process_index: int = 0, process_count: int = 1
    ) -> grain.DatasetIterator[Rows]:
        """Endless batches, int32 [batch_size / process_count, length]: this process's share of each.

        The first batch holds the examples from `examples_seen` on; process p takes rows p·share to (p + 1)·share - 1.
        The reading threads end with the iterator, at once by its `close()`. Raises `ConfigError` if the processes
        cannot share a batch evenly.
        """
        size = self._data.batch_size
        allowed = f"must be a multiple of the {process_count} processes"
        require(size % process_count == 0, "data.batch_size", size, allowed)
        require(examples_seen >= 0, "examples_seen", examples_seen, "must be at least 0")
        require(0 <= process_index < process_count, "process_index", process_index, f"must be below {process_count}")
        # Without drop_remainder grain computes the length of an endless data set in floating point, and overflows.
        shares = self._examples[examples_seen:].batch(size // process_count, drop_remainder=True)
        return iter(shares[process_index::process_count].to_iter_dataset(_PREFETCH))


def validation_batches(prepared: Prepared, data: DataConfig, *, limit: int = 0, shift: float = 0.0) -> Iterator[Rows]:
    """The same batches at every call; where no `segment_ids` tell padding, `mask` (bool) does.

    All sequences in order (of all sources, whatever their weights) or, with `limit` > 0, at most `limit` batches of
    sequences spread evenly over the cache, of a mixture by its weights. `shift`, from 0 to below 1, moves them by that
    part of their distance, for other sequences spread as evenly. The last batch is filled up with padding. Raises
    `ConfigError` if a source has no sequence.
    """
    sources = [examples(cache, data) for cache in prepared.validation]
    total = limit * data.batch_size
    shares = [int(total * weight) for weight in prepared.weights]
    wanted = [max(1, share) if limit > 0 else len(source) for source, share in zip(sources, shares, strict=True)]
    if limit > 0:
        wanted[wanted.index(max(wanted))] += total - sum(wanted)
    rows: list[tuple[Any, int]] = []
    for source, own in zip(sources, wanted, strict=True):
        count = min(len(source), own)
        chosen = ((np.arange(count) + shift) * len(source) / count).astype(np.int64)
        rows += [(source, index) for index in chosen]
    return _padded(rows, data.batch_size)


def _padded(rows: Sequence[tuple[Any, int]], batch_size: int) -> Iterator[Rows]:
    for first in range(0, len(rows), batch_size):
        some = [source[index] for source, index in rows[first : first + batch_size]]
        batch = {name: np.zeros((batch_size, *some[0][name].shape), np.int32) for name in some[0]}
        if "segment_ids" not in batch:
            batch["mask"] = np.zeros(batch["tokens"].shape, np.bool_)
            batch["mask"][: len(some)] = True
        for name in some[0]:
            batch[name][: len(some)] = [row[name] for row in some]
        yield batch
