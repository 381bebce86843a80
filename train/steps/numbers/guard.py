"""The guard of a step: an update that is no number, or far off, never reaches the state.

It is decided inside the compiled step, so that the host may look a step later: where training has to wait for the host,
the steps that are already under way leave the state alone too.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mom_jax import sharding
from mom_jax.losses import Losses
from train.numbers import WatchConfig

# What became of a step. HELD: not tried, since a step before was refused and the host has not been heard.
APPLIED, NOT_FINITE, SPIKE, HELD = range(4)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Verdict:
    """outcome: what became of the step, int32. go: whether the next step may be tried, bool. in_a_row: updates refused
    one after the other up to here, int32."""

    outcome: jax.Array
    go: jax.Array
    in_a_row: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Guard:
    """What a step is judged by. limits: loss and norm of the gradient above which it is a spike, float32 [2]. last: the
    verdict of the step before. rewound_from: the step up to which no update ends a row of refusals, int32."""

    limits: jax.Array
    last: Verdict
    rewound_from: jax.Array


def make_guard(limits: tuple[float, float], in_a_row: int, rewound_from: int, mesh: Mesh) -> Guard:
    """A guard on all devices of the mesh, with which a phase begins."""
    last = Verdict(*(replicate(value, mesh) for value in (np.int32(APPLIED), np.bool_(True), np.int32(in_a_row))))
    return Guard(replicate(np.array(limits, np.float32), mesh), last, replicate(np.int32(rewound_from), mesh))


def abstract_guard(mesh: Mesh) -> Guard:
    """Shapes, types and shardings of a guard."""

    def shape(dtype: Any, *sizes: int) -> Any:
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=sharding.replicated(mesh))

    return Guard(shape(jnp.float32, 2), Verdict(shape(jnp.int32), shape(jnp.bool_), shape(jnp.int32)), shape(jnp.int32))


def replicate(value: Any, mesh: Mesh) -> jax.Array:
    """A small array, the same in all processes, whole on every device; nothing is communicated."""
    array = np.asarray(value)
    return jax.make_array_from_callback(array.shape, sharding.replicated(mesh), lambda index: array[index])


def judge(
    guard: Guard, watch: WatchConfig, losses: Losses, grad_norm: jax.Array, params: Any, step: jax.Array
) -> tuple[Verdict, jax.Array, jax.Array]:
    """(the verdict, whether the update is taken, whether the step counts as done).

    params: after the update. step: how many came before.
    """
    finite = jnp.isfinite(losses.total) & jnp.isfinite(losses.loss) & jnp.isfinite(grad_norm) & all_finite(params)
    above = (losses.loss > guard.limits[0]) | (grad_norm > guard.limits[1])
    spike = finite & above if watch.spike != "off" else jnp.bool_(False)
    refused = ~finite | (spike if watch.spike != "log" else False)
    # The step after the one that was rewound from ends the row; those before it were fine the first time too.
    past = step + 1 > guard.rewound_from
    in_a_row = jnp.where(refused, guard.last.in_a_row + 1, jnp.where(past, 0, guard.last.in_a_row))
    waits = (~finite & (watch.non_finite != "skip")) | (spike & (watch.spike in ("stop", "rewind")))
    waits |= refused & (in_a_row > watch.patience)
    outcome = jnp.where(finite, jnp.where(spike, SPIKE, APPLIED), NOT_FINITE)
    go = guard.last.go
    verdict = Verdict(
        jnp.where(go, outcome, HELD).astype(jnp.int32), go & ~waits, jnp.where(go, in_a_row, guard.last.in_a_row)
    )
    return verdict, go & ~refused, go & ~waits


def all_finite(tree: Any) -> jax.Array:
    """Whether no number of a tree of arrays is infinite or NaN."""
    return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]))


def taken(take: jax.Array, new: Any, old: Any) -> Any:
    """The new tree where it is taken, or else the old one, to the bit."""
    return jax.tree.map(lambda a, b: jnp.where(take, a, b), new, old)
