"""The cache of keys and values for decoding, and what tokens may see with and without one."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from mom_jax.attention import View
from mom_jax.sharding import gather_tokens, size


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """Keys and values of everything seen so far: one pair per anchor, one per (chunk, step).

    kv: for each of `bottom`, `chunks`, `anchors`, `top` a list of KV [B, h, M, d]; for a chunk, a list of H of them.
    valid: [B, M] bool, the slots that hold a real token. length: int32, the slots in use; the number 0 in a new cache,
    so that a call that begins with it knows that there is nothing to attend to but its own tokens.
    """

    kv: dict[str, list[Any]]
    valid: jax.Array
    length: jax.Array | int


def is_new(cache: Cache) -> bool:
    """Whether nothing has been written to the cache, and the program is traced for that."""
    return isinstance(cache.length, int) and cache.length == 0


def view_of(
    valid: jax.Array, masked: bool, segment_ids: jax.Array | None, cache: Cache | None
) -> tuple[View, jax.Array]:
    """What the tokens of this call may see, and the cache's valid slots after it."""
    length = valid.shape[1]
    if cache is None or is_new(cache):
        place = jnp.arange(length)
        visible = (place[None, :] <= place[:, None])[None] & valid[:, None, :]
        if segment_ids is not None:
            visible &= segment_ids[:, :, None] == segment_ids[:, None, :]
        if masked or segment_ids is not None:
            # Padding is a segment of its own.
            segment_ids = jnp.where(valid, 0 if segment_ids is None else segment_ids, -1)
        unused = 0 if cache is None else cache.valid.shape[1] - length
        return View(visible, segment_ids=segment_ids), jnp.pad(valid, ((0, 0), (0, unused)))
    slots = jax.lax.dynamic_update_slice(cache.valid, valid, (0, cache.length))
    place = cache.length + jnp.arange(length, dtype=jnp.int32)
    visible = (jnp.arange(slots.shape[1], dtype=jnp.int32)[None, :] <= place[:, None])[None] & slots[:, None, :]
    return View(visible, jnp.asarray(cache.length, jnp.int32)), slots


def view_of_group(view: View) -> View:
    """What attention may see where it works for the sequences of all devices that divide the heads."""
    if size("tensor") == 1:
        return view
    segments = None if view.segment_ids is None else gather_tokens(view.segment_ids, "tensor")
    return View(gather_tokens(view.visible, "tensor"), view.start, segments)
