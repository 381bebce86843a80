"""Weights that are gathered once more for the backward pass, rather than kept from the forward pass."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax

from mom_jax.sharding.collectives import sizes


def gathered_again(prepare: Callable, use: Callable, shards: Any, given: Any) -> Any:
    """use(prepare(shards), given); on a mesh the backward pass prepares once more what the forward pass has prepared,
    rather than keep it from one to the other. Neither function may close over traced values."""
    return _gathered_again(prepare, use, shards, given) if sizes() else use(prepare(shards), given)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _gathered_again(prepare: Callable, use: Callable, shards: Any, given: Any) -> Any:
    return use(prepare(shards), given)


@functools.partial(jax.tree_util.register_dataclass, data_fields=["shards", "kept"], meta_fields=["places", "tree"])
@dataclasses.dataclass(frozen=True)
class _Residual:
    """A pullback. kept: its arrays, but for those that `prepare` makes of `shards`. places: for each array the number
    of the prepared one that it is, or None. tree: its structure."""

    shards: Any
    kept: list[jax.Array]
    places: tuple[int | None, ...]
    tree: Any


def _forward(prepare: Callable, use: Callable, shards: Any, given: Any) -> tuple[Any, _Residual]:
    prepared = prepare(shards)
    output, pullback = jax.vjp(use, prepared, given)
    number = {id(array): i for i, array in enumerate(jax.tree.leaves(prepared))}
    arrays, tree = jax.tree.flatten(pullback)
    places = tuple(number.get(id(array)) for array in arrays)
    kept = [array for array, place in zip(arrays, places, strict=True) if place is None]
    return output, _Residual(shards, kept, places, tree)


def _backward(prepare: Callable, use: Callable, residual: _Residual, d: Any) -> tuple[Any, Any]:
    # Tied to a cotangent: XLA would otherwise see the same gather twice, and do it once.
    shards, _ = jax.lax.optimization_barrier((residual.shards, jax.tree.leaves(d)[0]))
    prepared, prepare_pullback = jax.vjp(prepare, shards)
    again, kept = jax.tree.leaves(prepared), iter(residual.kept)
    arrays = [next(kept) if place is None else again[place] for place in residual.places]
    d_prepared, d_given = jax.tree.unflatten(residual.tree, arrays)(d)
    return *prepare_pullback(d_prepared), d_given


_gathered_again.defvjp(_forward, _backward)
