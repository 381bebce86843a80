"""Where the rows of a routing decision lie: the choices sorted by module once, for every product that they serve.

A row is one choice of a real module (null choices have no row), P rows in all; rows of a module are adjacent. Rows move
by gathers, in the backward pass too: the transpose of a permutation is its inverse.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

BLOCK = 128  # choices that are counted at a time


class Plan(NamedTuple):
    """Where every choice's row lies.

    slot_TxK: the row of each choice, P for a choice without one. choice_P: the flat choice t·K + k of each row, T·K for
    an empty row. module_P: the module of each row; of an empty one any. sizes_N: rows of each module.
    """

    slot_TxK: jax.Array
    choice_P: jax.Array
    module_P: jax.Array
    sizes_N: jax.Array

    @property
    def choices(self) -> tuple[int, ...]:
        """(T, K)."""
        return self.slot_TxK.shape

    @property
    def has_row(self) -> jax.Array:
        """Which choices have a row, bool [T, K]."""
        return self.slot_TxK < self.choice_P.shape[0]


def sort_plan(index_TxK: jax.Array, num_modules: int, unit: int = 1, multiple: int = 1) -> Plan:
    """Groups the choices by module, each module's rows from a multiple of `unit` on; an index of `num_modules` or more
    is a null. P is a multiple of `multiple`."""
    sizes, rank, module = _ranks(index_TxK, num_modules)
    padded = -(-sizes // unit) * unit
    end = jnp.cumsum(padded)
    rows = math.ceil((index_TxK.size + num_modules * (unit - 1)) / multiple / unit) * multiple * unit
    slot = jnp.where(module < num_modules, jnp.append(end - padded, 0)[module] + rank, rows)
    # Compared with all ends: a binary search would be a loop.
    module_P = jnp.searchsorted(end, jnp.arange(rows, dtype=end.dtype), side="right", method="compare_all")
    return _plan(slot.reshape(index_TxK.shape), rows, module_P, sizes)


def capacity_plan(index_TxK: jax.Array, num_modules: int, factor: float) -> Plan:
    """Room for `factor` times an even share of all choices in every module; the choices of later tokens that do not fit
    are dropped: they have no row. Module n's rows are the n-th P / N."""
    room = max(1, math.ceil(factor * index_TxK.size / num_modules))
    sizes, rank, module = _ranks(index_TxK, num_modules)
    fits = (module < num_modules) & (rank < room)
    slot = jnp.where(fits, module * room + rank, num_modules * room)
    module_P = jnp.repeat(jnp.arange(num_modules, dtype=jnp.int32), room)
    return _plan(slot.reshape(index_TxK.shape), num_modules * room, module_P, jnp.minimum(sizes, room))


def limited(index_TxK: jax.Array, num_modules: int, factor: float) -> jax.Array:
    """The choices, with nulls (`num_modules`) for those that `capacity_plan` would drop."""
    plan = capacity_plan(index_TxK, num_modules, factor)
    return jnp.where(plan.has_row, index_TxK, num_modules)


def _ranks(index_TxK: jax.Array, num_modules: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The modules' sizes [N]; each choice's rank in its module, in the order of the tokens; its module, N if null."""
    module = jnp.minimum(index_TxK.reshape(-1), num_modules).astype(jnp.int32)
    own = module[:, None] == jnp.arange(num_modules, dtype=jnp.int32)[None]
    count = _running_count(own)
    rank = jnp.where(own, count - 1, 0).sum(1)
    return count[-1], rank, module


def _running_count(marks: jax.Array) -> jax.Array:
    """How many of the marks [C, N] are set up to and including each row, int32 [C, N].

    Counting needs no sort of the choices: a cumulative sum by products with triangular matrices, first within blocks
    of rows, then over the blocks. Both are exact: 0 and 1 in any dtype, counts below 2^24 in float32.
    """
    choices, modules = marks.shape
    block = min(BLOCK, choices)
    blocks = -(-choices // block)
    padded = jnp.pad(marks, ((0, blocks * block - choices), (0, 0))).reshape(blocks, block, modules)

    def sums(x: jax.Array, form: str, lower: jax.Array) -> jax.Array:
        exact = jax.lax.Precision.HIGHEST
        return jnp.einsum(form, lower.astype(jnp.float32), x.astype(jnp.float32), precision=exact)

    within = sums(padded, "ij,bjn->bin", jnp.tri(block))
    before = sums(within[:, -1], "bc,cn->bn", jnp.tri(blocks, k=-1))
    return (within + before[:, None]).reshape(-1, modules)[:choices].astype(jnp.int32)


def _plan(slot_TxK: jax.Array, rows: int, module_P: jax.Array, sizes_N: jax.Array) -> Plan:
    """A plan from the choices' rows, which it inverts."""
    choices = slot_TxK.size
    slot = slot_TxK.astype(jnp.int32)
    choice = jnp.full(rows, choices, jnp.int32)
    choice = choice.at[slot.reshape(-1)].set(jnp.arange(choices, dtype=jnp.int32), mode="drop")
    return Plan(slot, choice, module_P.astype(jnp.int32), sizes_N)


def take(x: jax.Array, index: jax.Array) -> jax.Array:
    """Rows of `x` by `index`, zeros where the index is past the end."""
    return jnp.take(x, index, axis=0, mode="fill", fill_value=0)


@jax.custom_vjp
def gather(x_TxD: jax.Array, plan: Plan) -> jax.Array:
    """Each row's token, [P, D]; empty rows are zeros."""
    return take(x_TxD, plan.choice_P // plan.slot_TxK.shape[1])


@jax.custom_vjp
def combine(rows_PxD: jax.Array, plan: Plan) -> jax.Array:
    """Each token's sum over the rows of its choices, [T, D]. The transpose of `gather`."""
    return take(rows_PxD, plan.slot_TxK).sum(1)


@jax.custom_vjp
def spread(weight_TxK: jax.Array, plan: Plan) -> jax.Array:
    """Each row's weight, [P]; 0 for empty rows."""
    return take(weight_TxK.reshape(-1), plan.choice_P)


gather.defvjp(lambda x, plan: (gather(x, plan), plan), lambda plan, d: (combine(d, plan), None))
combine.defvjp(lambda rows, plan: (combine(rows, plan), plan), lambda plan, d: (gather(d, plan), None))
spread.defvjp(lambda weight, plan: (spread(weight, plan), plan), lambda plan, d: (take(d, plan.slot_TxK), None))
