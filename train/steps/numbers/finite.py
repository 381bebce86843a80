"""Weights that are read are looked at once: what is infinite or NaN in a file would only show much later."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mom_jax.fields import ConfigError
from train.steps.optimizer.names import path_name

_PIECE = 2**22  # numbers looked at together, beside a whole model in memory


@jax.jit
def _bad_counts(leaves: list[jax.Array]) -> list[jax.Array]:
    return [(~jnp.isfinite(leaf)).sum(dtype=jnp.int32) for leaf in leaves]


def check_finite(tree: Any, where: str) -> Any:
    """`tree`, of arrays on the host or on devices. Raises ConfigError naming `where` and the first array that has
    infinite numbers or NaN; all processes do, where several have an array together."""
    leaves = [(path, leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree) if _is_float(leaf)]
    on_host = all(isinstance(leaf, np.ndarray) for _, leaf in leaves)
    counts = map(count, (leaf for _, leaf in leaves)) if on_host else _bad_counts([leaf for _, leaf in leaves])
    for (path, leaf), bad in zip(leaves, counts, strict=True):
        if bad:
            raise ConfigError(f"{where}: {complaint(path_name(path), int(bad), leaf.size)}")
    return tree


def complaint(name: str, bad: int, size: int) -> str:
    """What is wrong with an array."""
    return f"{name} has {bad:,} of {size:,} numbers that are NaN or infinite"


def count(array: np.ndarray) -> int:
    """How many numbers of an array are NaN or infinite."""
    return sum(int(part.size - np.count_nonzero(np.isfinite(part))) for part in _parts(array))


def _parts(array: np.ndarray) -> Iterator[np.ndarray]:
    """The array in pieces, none of them a copy."""
    if array.ndim == 0 or array.size <= _PIECE:
        yield array
    elif array[0].size > _PIECE:
        for row in array:
            yield from _parts(row)
    else:
        rows = max(1, _PIECE // max(1, array[0].size))
        for first in range(0, len(array), rows):
            yield array[first : first + rows]


def _is_float(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.inexact)
