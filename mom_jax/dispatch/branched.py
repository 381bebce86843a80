"""The routed computation for decoding on CPUs: blocks of rows, each by a branch that has its module's weights.

XLA copies what is indexed out of a stacked array before it multiplies with it. Here every module's weights are arrays
of their own, and a `lax.switch` picks the branch that reads them: a step reads the chosen modules' weights, once per
block of rows. There are no gradients.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from mom_jax.dispatch.computation import ModuleComputation, PooledWeights, linear
from mom_jax.dispatch.plan import Plan, combine, sort_plan, take

LARGEST = 128  # rows of a block


def unit(choices: int, num_modules: int) -> int:
    """Rows of a block: twice a module's even share of the choices, as a power of two.

    One row is a product of a vector, for which XLA has fast code of its own; its products of two rows are slower than
    of four.
    """
    share = 2 * choices // num_modules
    return 1 if share <= 1 else min(LARGEST, max(4, 1 << (share - 1).bit_length()))


def unstack(weights: Any) -> PooledWeights:
    """A pool whose modules' weights, stacked on a leading axis N, become arrays of their own."""
    modules = len(jax.tree.leaves(weights)[0])
    return PooledWeights([jax.tree.map(lambda w, i=i: w[i], weights) for i in range(modules)], None)


def is_unstacked(pool: PooledWeights) -> bool:
    """Whether `unstack` made it."""
    return isinstance(pool.weights, list)


def plan(index_TxK: jax.Array, num_modules: int) -> Plan:
    """The choices grouped by module, in blocks of `unit` rows; those of a single token lie as they are, nulls too."""
    tokens, choices = index_TxK.shape
    if tokens > 1:
        return sort_plan(index_TxK, num_modules, unit(index_TxK.size, num_modules))
    place = jnp.arange(choices, dtype=jnp.int32)
    module = jnp.minimum(index_TxK[0], num_modules).astype(jnp.int32)
    sizes = (module[:, None] == jnp.arange(num_modules, dtype=jnp.int32)[None]).sum(0).astype(jnp.int32)
    return Plan(jnp.where(module < num_modules, place, choices)[None], place, module, sizes)


def routed(
    computation: ModuleComputation, x_TxD: jax.Array, pool: PooledWeights, multiplier_TxK: jax.Array, plan: Plan
) -> tuple:
    """Each token's sum of `computation` over its choices, and the pool as it is."""
    modules, (tokens, choices) = pool.weights, plan.slot_TxK.shape
    like = jax.eval_shape(functools.partial(computation, linear), x_TxD[:1], multiplier_TxK[:1, :1], modules[0])

    def branch(own: Any, rows: jax.Array, multiplier: jax.Array) -> jax.Array:
        return computation(linear, rows, multiplier, own)

    branches = [functools.partial(branch, own) for own in modules]
    if tokens == 1:
        nothing = [lambda rows, multiplier: jnp.zeros(like.shape, like.dtype)]
        terms = [
            jax.lax.switch(plan.module_P[k], branches + nothing, x_TxD, multiplier_TxK[:, k : k + 1])
            for k in range(choices)
        ]
        return functools.reduce(jnp.add, terms), pool

    size = unit(tokens * choices, len(modules))
    flat = multiplier_TxK.reshape(-1)

    def visit(i: jax.Array, out: jax.Array) -> jax.Array:
        # Modules' blocks lie one after another: there are no empty ones between them.
        choice = jax.lax.dynamic_slice_in_dim(plan.choice_P, i * size, size)
        rows, multiplier = take(x_TxD, choice // choices), take(flat, choice)[:, None]
        y = jax.lax.switch(plan.module_P[i * size], branches, rows, multiplier)
        return jax.lax.dynamic_update_slice_in_dim(out, y, i * size, 0)

    out = jnp.zeros((plan.choice_P.shape[0], like.shape[1]), like.dtype)
    out = jax.lax.fori_loop(0, (-(-plan.sizes_N // size)).sum(), visit, out)
    return combine(out, plan), pool
