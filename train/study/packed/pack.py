"""Makes the file of tokens from a configuration's data."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from mom_jax.fields import ConfigError, require
from train.config import DataConfig
from train.data.cache import TokenCache
from train.data.prepared import prepare
from train.files import check_replaceable
from train.study.packed.tokens import DTYPE, FORMAT, HEADER, TokenFile, open_tokens, write_tokens


def pack(data: DataConfig, limit: int, file: Path, say: Callable[[str], None]) -> TokenFile:
    """Writes a file of at most `limit` bytes: windows of the held-out documents, spread evenly, and windows of the
    others, drawn at random, each once. Of a mixture each source has its share.

    Raises ConfigError for data that cannot be, or of which there is too little.
    """
    check_replaceable(file, FORMAT.encode(), "a file of tokens", "pack")
    require(data.packing == "concatenate", "data.packing", data.packing, "must be 'concatenate' to be packed")
    prepared = prepare(data, say)
    size, most = prepared.tokenizer.vocab_size, 2 ** (8 * DTYPE.itemsize)
    require(size <= most, "data.vocab_size", size, f"must be at most {most} to be packed")
    rows = (limit - HEADER) // (data.length * DTYPE.itemsize)
    held_out = int(rows * data.validation_fraction)
    require(held_out >= 1, "limit", limit, f"bytes are too few for windows of {data.length} tokens")
    rng = np.random.default_rng(data.seed)

    def evenly(there: int, wanted: int) -> np.ndarray:
        return np.arange(wanted) * there // wanted

    def drawn(there: int, wanted: int) -> np.ndarray:
        return rng.permutation(there)[:wanted]

    validation = _taken(prepared.validation, prepared.weights, held_out, data.length, evenly)
    training = _taken(prepared.train, prepared.weights, rows - held_out, data.length, drawn)
    source = {"source": data.source, "tokenizer": prepared.tokenizer.fingerprint}
    write_tokens(file, validation, training, size, source)
    return open_tokens(file)


def _taken(
    caches: Sequence[TokenCache],
    weights: Sequence[float],
    rows: int,
    length: int,
    choose: Callable[[int, int], np.ndarray],
) -> np.ndarray:
    """Windows [rows, length]; fewer where a source has fewer."""
    parts = []
    for cache, weight in zip(caches, weights, strict=True):
        there = cache.num_tokens // length
        windows = cache.tokens[: there * length].reshape(there, length)
        parts.append(cache.checked(windows[choose(there, min(there, int(rows * weight)))]))
    found = np.concatenate(parts)
    if not len(found):
        raise ConfigError(f"data.length={length}: the documents have no window of so many tokens")
    return found
