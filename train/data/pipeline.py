"""Batches of token windows from a token cache.

The tokens of all documents, one after another, are cut into windows. The order of training is a pure function of
(seed, epoch, index): no state but the number of examples seen, whatever the number of processes or the batch size.
"""

from collections.abc import Generator, Iterator

import grain
import numpy as np

from mom_jax.fields import require
from train.data.cache import TokenCache

# Elements are whole batches from memory or a memory map: a short queue hides the reading, more threads only compete.
_PREFETCH = grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)


class _Windows:
    """Random access to a cache's windows, each int32 [length]; what grain calls a data source."""

    def __init__(self, cache: TokenCache, length: int) -> None:
        self._tokens = cache.tokens
        self._length = length
        self._count = num_windows(cache, length)
        require(self._count >= 1, "data.length", length, f"{cache.folder} has {cache.num_tokens} tokens only")

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> np.ndarray:
        start = int(index) * self._length
        return self._tokens[start : start + self._length].astype(np.int32)


def num_windows(cache: TokenCache, length: int) -> int:
    """How many windows of `length` tokens the cache has; a rest shorter than a window is left out."""
    return cache.num_tokens // length


def train_batches(
    cache: TokenCache,
    *,
    batch_size: int,
    length: int,
    seed: int,
    examples_seen: int,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.DatasetIterator[np.ndarray]:
    """Endless shuffled batches, int32 [batch_size / process_count, length]: this process's share of each.

    Example i of the whole run is the window at i % num_windows of the shuffle of epoch i // num_windows, so that every
    epoch has every window once and batches may span two epochs. The first batch holds the examples from
    `examples_seen` on; process p takes rows p·share to (p + 1)·share - 1. The reading threads end with the iterator,
    at once by its `close()`.

    Raises `ConfigError` if the cache is shorter than one window, if the processes cannot share a batch evenly or the
    seed is negative.
    """
    windows = _Windows(cache, length)
    allowed = f"must be a multiple of the {process_count} processes"
    require(batch_size >= 1 and batch_size % process_count == 0, "data.batch_size", batch_size, allowed)
    require(seed >= 0, "data.seed", seed, "must be at least 0")
    require(examples_seen >= 0, "examples_seen", examples_seen, "must be at least 0")
    require(0 <= process_index < process_count, "process_index", process_index, f"must be below {process_count}")
    # Grain adds the epoch to the seed: neighbouring seeds are spread first, or seed 1 would follow seed 0 by an epoch.
    # NumPy promises that this value never changes; grain makes no such promise for its own default seeds.
    spread = int(np.random.SeedSequence(seed).generate_state(1)[0])
    # Without drop_remainder grain computes the length of an endless data set in floating point, and overflows.
    shares = (
        grain.MapDataset.source(windows)
        .shuffle(seed=spread)
        .repeat()[examples_seen:]
        .batch(batch_size // process_count, drop_remainder=True)[process_index::process_count]
    )
    return iter(shares.to_iter_dataset(_PREFETCH))


def validation_batches(
    cache: TokenCache, *, batch_size: int, length: int, limit: int = 0, shift: float = 0.0
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The same batches at every call: pairs of tokens, int32 [batch_size, length], and weights, bool of that shape.

    All windows in order or, with `limit` > 0, at most `limit` batches of windows spread evenly over the cache. `shift`,
    from 0 to below 1, moves them by that part of their distance, for other windows spread as evenly. The last batch is
    filled up with rows of weight False. Raises `ConfigError` if the cache is shorter than one window.
    """
    windows = _Windows(cache, length)
    count = min(len(windows), limit * batch_size) if limit > 0 else len(windows)
    chosen = ((np.arange(count) + shift) * len(windows) / count).astype(np.int64)
    return _padded(windows, chosen, batch_size, length)


def _padded(
    windows: _Windows, chosen: np.ndarray, batch_size: int, length: int
) -> Generator[tuple[np.ndarray, np.ndarray], None, None]:
    for first in range(0, len(chosen), batch_size):
        rows = [windows[i] for i in chosen[first : first + batch_size]]
        tokens, weights = np.zeros((batch_size, length), np.int32), np.zeros((batch_size, length), np.bool_)
        tokens[: len(rows)], weights[: len(rows)] = rows, True
        yield tokens, weights
