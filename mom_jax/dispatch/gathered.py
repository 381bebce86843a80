"""The routed computation for decoding on accelerators: few tokens, stacked weights, no gradients.

What counts are the bytes of weights that are read. Where there are fewer choices than modules, each choice takes its
module's matrices out of the stack, by an index that becomes part of the product that reads them; else all modules are
read, once, for all tokens. Neither has a loop or a branch, for which a GPU would wait for its host.
"""

from typing import Any

import jax
import jax.numpy as jnp

from mom_jax.dispatch.computation import ModuleComputation, PooledWeights, linear
from mom_jax.dispatch.plan import Plan

MOST = 128  # tokens for which this is meant; of more, tiles of rows of one module are worth sorting them


def plan(index_TxK: jax.Array, num_modules: int) -> Plan:
    """Every choice's row where the choice is, nulls' too."""
    place = jnp.arange(index_TxK.size, dtype=jnp.int32)
    module = jnp.minimum(index_TxK.reshape(-1), num_modules).astype(jnp.int32)
    sizes = (module[:, None] == jnp.arange(num_modules, dtype=jnp.int32)[None]).sum(0).astype(jnp.int32)
    slot = jnp.where(module < num_modules, place, index_TxK.size).reshape(index_TxK.shape)
    return Plan(slot, place, module, sizes)


def routed(
    computation: ModuleComputation, x_TxD: jax.Array, pool: PooledWeights, multiplier_TxK: jax.Array, plan: Plan
) -> tuple:
    """Each token's sum of `computation` over its choices, [T, E], and the pool as it is."""
    choices, modules = plan.slot_TxK.size, plan.sizes_N.shape[0]
    terms = _by_choice if choices < modules else _by_module
    return terms(computation, x_TxD, pool.weights, multiplier_TxK, plan), pool


def _by_choice(
    computation: ModuleComputation, x: jax.Array, weights: Any, multiplier: jax.Array, plan: Plan
) -> jax.Array:
    tokens, choices = multiplier.shape
    modules = plan.sizes_N.shape[0]
    rows = []
    for t in range(tokens):
        total: Any = 0
        for k in range(choices):
            module = plan.module_P[t * choices + k]
            # The last module stands in for nulls, whose result is not taken.
            own = jax.tree.map(lambda w, module=module: w[jnp.minimum(module, modules - 1)], weights)
            term = computation(linear, x[t : t + 1], multiplier[t : t + 1, k : k + 1], own)
            total = total + jnp.where(module < modules, term, 0)
        rows.append(total)
    return jnp.concatenate(rows)


def _by_module(
    computation: ModuleComputation, x: jax.Array, weights: Any, multiplier: jax.Array, plan: Plan
) -> jax.Array:
    modules = jnp.arange(plan.sizes_N.shape[0], dtype=jnp.int32)
    chosen = plan.module_P.reshape(multiplier.shape)[None] == modules[:, None, None]  # [N, T, K]
    own_multiplier = jnp.where(chosen, multiplier[None], 0).sum(2)[:, :, None]
    terms = jax.vmap(lambda own, multiplier: computation(linear, x, multiplier, own))(weights, own_multiplier)
    return jnp.where(chosen.any(2)[:, :, None], terms, 0).sum(0).astype(x.dtype)
