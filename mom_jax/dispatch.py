"""The routed matmul: rows grouped by module, one grouped matrix product, rows back to their tokens. Dropless.

`make_plan` sorts the choices once; every product of the same choices reuses it. A row is one choice of a real module
(null choices have no row), P rows in all; rows of a module are adjacent and, for the `blocked` backend, begin at a
multiple of the block, so that a block has one module. The gradients of moving rows are gathers too, not scatters.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

MAX_BLOCK = 128  # rows per block on a CPU: large enough for an efficient product, small enough to waste few rows


class Plan(NamedTuple):
    """Where every choice's row lies.

    slot_TxK: the row of each choice, P for a null. choice_P: the flat choice t·K + k of each row, T·K for an empty row.
    module_G: the module of each block of P / G rows, N for an unused one. sizes_N: rows of each module. blocks: used.
    """

    slot_TxK: jax.Array
    choice_P: jax.Array
    module_G: jax.Array
    sizes_N: jax.Array
    blocks: jax.Array


def resolve(backend: str) -> str:
    """`auto` by platform: `blocked` on CPU (where ragged_dot multiplies by every module), else `ragged`."""
    if backend != "auto":
        return backend
    return "blocked" if jax.default_backend() == "cpu" else "ragged"


def make_plan(index_TxK: jax.Array, num_modules: int, backend: str) -> Plan:
    """Groups the choices `index` by module; an index of `num_modules` or more is a null."""
    tokens, k = index_TxK.shape
    choices = tokens * k
    block = 1
    if backend == "blocked":
        block = min(MAX_BLOCK, max(8, 1 << int(np.ceil(np.log2(max(1, choices // num_modules))))))
    blocks = -(-(choices + num_modules * (block - 1)) // block)
    module = jnp.minimum(index_TxK.reshape(-1), num_modules)
    order = jnp.argsort(module)  # stable: a module's rows keep the order of the tokens
    ordered = module[order]
    sizes = jnp.bincount(module, length=num_modules + 1)[:num_modules].astype(jnp.int32)
    end = jnp.cumsum(-(-sizes // block) * block)
    # The row of the j-th sorted choice: where its module starts plus its rank in the module.
    rank_0 = jnp.append(jnp.cumsum(sizes) - sizes, 0)[ordered]
    start = jnp.append(end - (-(-sizes // block) * block), 0)[ordered]
    slot = jnp.where(ordered < num_modules, start + jnp.arange(choices, dtype=jnp.int32) - rank_0, blocks * block)
    slot = jnp.zeros(choices, jnp.int32).at[order].set(slot.astype(jnp.int32), unique_indices=True)
    choice = jnp.full(blocks * block, choices, jnp.int32)
    choice = choice.at[slot].set(jnp.arange(choices, dtype=jnp.int32), mode="drop")
    module_of_block = jnp.searchsorted(end, jnp.arange(blocks, dtype=end.dtype) * block, side="right")
    return Plan(slot.reshape(tokens, k), choice, module_of_block.astype(jnp.int32), sizes, end[-1] // block)


def _take(x: jax.Array, index: jax.Array) -> jax.Array:
    """Rows of `x` by `index`, zeros where the index is past the end."""
    return jnp.take(x, index, axis=0, mode="fill", fill_value=0)


@jax.custom_vjp
def gather(x_TxD: jax.Array, plan: Plan) -> jax.Array:
    """Each row's token, [P, D]; empty rows are zeros."""
    return _take(x_TxD, plan.choice_P // plan.slot_TxK.shape[1])


@jax.custom_vjp
def combine(rows_PxD: jax.Array, plan: Plan) -> jax.Array:
    """Each token's sum over the rows of its choices, [T, D]. The transpose of `gather`."""
    return _take(rows_PxD, plan.slot_TxK).sum(1)


@jax.custom_vjp
def spread(weight_TxK: jax.Array, plan: Plan) -> jax.Array:
    """Each row's weight, [P]; 0 for empty rows."""
    return _take(weight_TxK.reshape(-1), plan.choice_P)


gather.defvjp(lambda x, plan: (gather(x, plan), plan), lambda plan, d: (combine(d, plan), None))
combine.defvjp(lambda rows, plan: (combine(rows, plan), plan), lambda plan, d: (gather(d, plan), None))
spread.defvjp(lambda weight, plan: (spread(weight, plan), plan), lambda plan, d: (_take(d, plan.slot_TxK), None))


def grouped_linear(
    rows_PxD: jax.Array, kernel_NxDxE: jax.Array, bias_NxE: jax.Array, plan: Plan, backend: str
) -> jax.Array:
    """rows · kernel[module of the row] + bias[module], [P, E], accumulated in float32, in the dtype of the rows.

    What an empty row holds is not defined; `combine` never reads it.
    """
    return BACKENDS[backend](rows_PxD, kernel_NxDxE, bias_NxE, plan)


def _dense(rows: jax.Array, kernel: jax.Array, bias: jax.Array, plan: Plan) -> jax.Array:
    """Every module for every row, the right one kept: the oracle of the other backends."""
    module_P = jnp.repeat(plan.module_G, plan.choice_P.shape[0] // plan.module_G.shape[0])
    mine = jax.nn.one_hot(module_P, kernel.shape[0], dtype=jnp.float32)
    every = jnp.einsum("pd,nde->pne", rows, kernel, preferred_element_type=jnp.float32)
    return jnp.einsum("pn,pne->pe", mine, every + bias[None].astype(jnp.float32)).astype(rows.dtype)


def _ragged(rows: jax.Array, kernel: jax.Array, bias: jax.Array, plan: Plan) -> jax.Array:
    out = jax.lax.ragged_dot(rows, kernel, plan.sizes_N, preferred_element_type=jnp.float32)
    mine = jax.nn.one_hot(plan.module_G, kernel.shape[0], dtype=jnp.float32)
    return (out + mine @ bias.astype(jnp.float32)).astype(rows.dtype)


def _matmul(a: jax.Array, b: jax.Array, contract: tuple[int, int]) -> jax.Array:
    dims = (((contract[0],), (contract[1],)), ((), ()))
    return jax.lax.dot_general(a, b, dims, preferred_element_type=jnp.float32)


@jax.custom_vjp
def _blocked(rows: jax.Array, kernel: jax.Array, bias: jax.Array, plan: Plan) -> jax.Array:
    """A loop over the blocks in use, one plain product each: empty blocks and null choices cost nothing."""
    block = rows.shape[0] // plan.module_G.shape[0]

    def body(i: jax.Array, out: jax.Array) -> jax.Array:
        module = plan.module_G[i]
        part = jax.lax.dynamic_slice_in_dim(rows, i * block, block)
        part = _matmul(part, kernel[module], (1, 0)) + bias[module].astype(jnp.float32)[None]
        return jax.lax.dynamic_update_slice_in_dim(out, part.astype(out.dtype), i * block, 0)

    return jax.lax.fori_loop(0, plan.blocks, body, jnp.zeros((rows.shape[0], kernel.shape[2]), rows.dtype))


def _blocked_backward(residual: tuple, d_out: jax.Array) -> tuple:
    rows, kernel, bias, plan = residual
    block = rows.shape[0] // plan.module_G.shape[0]

    def body(i: jax.Array, carry: tuple) -> tuple:
        d_rows, d_kernel, d_bias = carry
        module = plan.module_G[i]
        part = jax.lax.dynamic_slice_in_dim(rows, i * block, block)
        d_part = jax.lax.dynamic_slice_in_dim(d_out, i * block, block)
        d_in = _matmul(d_part, kernel[module], (1, 1)).astype(d_rows.dtype)
        d_rows = jax.lax.dynamic_update_slice_in_dim(d_rows, d_in, i * block, 0)
        d_kernel = d_kernel.at[module].add(_matmul(part, d_part, (0, 0)))
        return d_rows, d_kernel, d_bias.at[module].add(d_part.astype(jnp.float32).sum(0))

    zero = jnp.zeros_like(rows), jnp.zeros(kernel.shape, jnp.float32), jnp.zeros(bias.shape, jnp.float32)
    d_rows, d_kernel, d_bias = jax.lax.fori_loop(0, plan.blocks, body, zero)
    return d_rows, d_kernel.astype(kernel.dtype), d_bias.astype(bias.dtype), None


_blocked.defvjp(lambda *args: (_blocked(*args), args), _blocked_backward)

BACKENDS: dict[str, Callable[..., jax.Array]] = {"dense": _dense, "ragged": _ragged, "blocked": _blocked}
