"""Rows that travel along `module`: each to the device that has its module, and what that makes of it back.

Devices F send to devices M what their own N modules are for; they all know how many rows that is. A device receives at
most `room` rows at a time. What is more waits for further rounds, whose number all devices of a group agree on.

On TPUs and GPUs a round is a `ragged_all_to_all` of the rows that there are. CPUs have none, nor have more than 32 TPU
v5e: there it is an all-to-all of equal slots, one for each pair of devices, and what does not fit a pair's slot waits.
"""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from mom_jax.platforms import device_kind, platform
from mom_jax.sharding.collectives import size
from mom_jax.sharding.mesh import AXES

AXIS = "module"


@functools.partial(jax.tree_util.register_dataclass, data_fields=["counts"], meta_fields=["room", "ragged"])
@dataclasses.dataclass(frozen=True)
class Exchange:
    """Who sends how many rows to whom.

    counts: [F, M, N] int32, rows that device F has for module n of device M. A device's own rows lie sorted by device
    and module. room: rows that a device receives in a round. ragged: whether rounds are `ragged_all_to_all`.
    """

    counts: jax.Array
    room: int
    ragged: bool

    @property
    def slot(self) -> int:
        """Rows that a pair of devices exchanges in a round of equal slots."""
        return -(-self.room // self.counts.shape[0])

    @property
    def received(self) -> int:
        """Rows that a device computes with in a round, empty ones among them."""
        return self.room if self.ragged else self.slot * self.counts.shape[0]

    @property
    def rounds(self) -> jax.Array:
        """How many rounds take all rows, int32: the same number on all devices of a group; at least 1."""
        pairs = self.counts.sum(2)
        most, at_a_time = (pairs.sum(0).max(), self.room) if self.ragged else (pairs.max(), self.slot)
        return jnp.maximum(-(-most // at_a_time), 1)


def make_exchange(sizes: jax.Array, rows: int, room: float) -> Exchange:
    """sizes: [M · N] int32, this device's rows for all modules of its group, padding included. rows: as many as every
    device has at most; room: of what a device receives, over that."""
    counts = jax.lax.all_gather(sizes.reshape(size(AXIS), -1), AXIS)
    return Exchange(counts, math.ceil(room * rows), has_ragged())


def has_ragged() -> bool:
    """Whether rounds are `ragged_all_to_all`, beside which devices compute."""
    if platform() == "tpu":
        return not _is_limited(device_kind(), size(*AXES))
    return platform() == "gpu"


def compiler_options(mesh: Mesh) -> dict[str, bool]:
    """What XLA has to be told when it compiles for the devices of a mesh, so that TPUs compute while rows travel."""
    device = mesh.devices.flat[0]
    if device.platform != "tpu" or mesh.shape[AXIS] == 1 or _is_limited(device.device_kind, mesh.size):
        return {}
    return {"xla_tpu_enable_async_ragged_all_to_all": True}


def _is_limited(kind: str | None, devices: int) -> bool:
    """Whether libtpu (0.0.42) refuses: "Ragged all-to-all is currently not supported in limited ICI routing settings",
    and "Async all-to-all not supported on limited ICI". Compiled were v5e, v5p and v6e of up to 256 chips."""
    return kind == "TPU v5 lite" and devices > 32


def modules_received(exchange: Exchange, turn: jax.Array | int) -> jax.Array:
    """The own module of each row that this device receives in a round, int32; N for an empty row."""
    here = exchange.counts[:, jax.lax.axis_index(AXIS)]
    sources, modules = here.shape
    if not exchange.ragged:
        place = turn * exchange.slot + jnp.arange(exchange.slot, dtype=jnp.int32)
        return jax.vmap(_segment, (0, None))(jnp.cumsum(here, 1), place).reshape(-1)
    ends = jnp.cumsum(here.reshape(-1))
    segment = _segment(ends, turn * exchange.room + jnp.arange(exchange.room, dtype=jnp.int32))
    return jnp.where(segment < sources * modules, segment % modules, modules)


def _segment(ends: jax.Array, place: jax.Array) -> jax.Array:
    """How many of the ends [S] are at or before each place [P]: the number of the segment that it lies in."""
    return (place[:, None] >= ends[None]).sum(1).astype(jnp.int32)


@jax.custom_vjp
def there(rows_PxD: jax.Array, exchange: Exchange, turn: jax.Array | int) -> jax.Array:
    """The rows that this device receives in a round, [received, D]; empty ones are zeros. rows: this device's own,
    sorted by device and module."""
    if exchange.ragged:
        sent, received = _windows(exchange, turn)
        return _ragged(rows_PxD, exchange.room, sent, received)
    own = exchange.counts[jax.lax.axis_index(AXIS)].sum(1)
    place = turn * exchange.slot + jnp.arange(exchange.slot, dtype=jnp.int32)[None]
    index = jnp.where(place < own[:, None], _begin(own)[:, None] + place, rows_PxD.shape[0])
    return _swap(jnp.take(rows_PxD, index.reshape(-1), axis=0, mode="fill", fill_value=0))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def back(rows_RxE: jax.Array, exchange: Exchange, turn: jax.Array | int, rows: int) -> jax.Array:
    """The transpose of `there`: the rows of a round, where they came from, [P, E]; all others are zeros. rows: P."""
    if exchange.ragged:
        sent, received = _windows(exchange, turn)
        return _ragged(rows_RxE, rows, received, sent)
    own, slot = exchange.counts[jax.lax.axis_index(AXIS)].sum(1), exchange.slot
    row = jnp.arange(rows, dtype=jnp.int32)
    device = _segment(jnp.cumsum(own), row)
    place = row - jnp.append(_begin(own), 0)[device] - turn * slot
    here = (device < own.shape[0]) & (place >= 0) & (place < slot)
    index = jnp.where(here, device * slot + place, rows_RxE.shape[0])
    return jnp.take(_swap(rows_RxE), index, axis=0, mode="fill", fill_value=0)


def _there_backward(residual: tuple, d: jax.Array) -> tuple:
    exchange, turn, rows = residual
    return back(d, exchange, turn, rows), None, None


def _back_backward(rows: int, residual: tuple, d: jax.Array) -> tuple:
    return there(d, *residual), None, None


there.defvjp(lambda rows, *how: (there(rows, *how), (*how, rows.shape[0])), _there_backward)
back.defvjp(lambda rows, *how: (back(rows, *how), how[:2]), _back_backward)


def _begin(sizes: jax.Array, axis: int = 0) -> jax.Array:
    return jnp.cumsum(sizes, axis) - sizes


def _swap(rows: jax.Array) -> jax.Array:
    """Slots to the devices that they are for: an all-to-all is its own inverse."""
    return jax.lax.all_to_all(rows, AXIS, split_axis=0, concat_axis=0, tiled=True)


class _Window(NamedTuple):
    """A device's part of a round: with every other one, where its rows begin here and there, and how many they are."""

    begin: jax.Array
    begin_there: jax.Array
    size: jax.Array


def _windows(exchange: Exchange, turn: jax.Array | int) -> tuple[_Window, _Window]:
    """(what this device sends in a round, what it receives)."""
    pairs, me = exchange.counts.sum(2), jax.lax.axis_index(AXIS)
    first = turn * exchange.room
    arrival = _begin(pairs)  # where a pair's rows begin among all that a device ever receives
    start, end = (jnp.clip(edge - arrival, 0, pairs) for edge in (first, first + exchange.room))
    home = _begin(pairs, 1) + start
    place = jnp.clip(arrival + start - first, 0, exchange.room)
    size = end - start
    return _Window(home[me], place[me], size[me]), _Window(place[:, me], home[:, me], size[:, me])


def _ragged(x: jax.Array, rows: int, sent: _Window, received: _Window) -> jax.Array:
    into = jnp.zeros((rows, *x.shape[1:]), x.dtype)
    return jax.lax.ragged_all_to_all(x, into, sent.begin, sent.size, sent.begin_there, received.size, axis_name=AXIS)
