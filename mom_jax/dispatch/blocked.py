"""Grouped products as loops over blocks of rows, each of one module: plain products of one module's matrix at a time.

The loops run over the blocks in use, so that null choices cost nothing. A module's rows are cut into few blocks, as
large as they come: products of many rows are more efficient, and each block reads its module's matrix and, in the
backward pass, adds to its gradient. Best on CPUs; a GPU would be asked before every block whether there is one more.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mom_jax.dispatch.plan import Plan
from mom_jax.products import matmul, matmul_transposed

UNIT = 16  # a module's rows begin at a multiple of it
SIZES = (256, *range(128, 0, -UNIT))  # rows of a block: what is left of a module's rows is one block


def forward(rows: jax.Array, kernel: jax.Array, bias: jax.Array, multiplier: jax.Array | None, plan: Plan) -> jax.Array:
    """As `grouped.Products.forward`."""

    def step(module: jax.Array, start: jax.Array, size: int, out: jax.Array) -> jax.Array:
        own_bias = _of(bias, module)[None]
        if multiplier is not None:
            own_bias = own_bias * _block(multiplier, start, size)
        result = matmul(_block(rows, start, size), _of(kernel, module)) + own_bias
        return jax.lax.dynamic_update_slice_in_dim(out, result.astype(rows.dtype), start, 0)

    return _for_each_block(plan, step, jax.lax.empty((rows.shape[0], bias.shape[1]), rows.dtype))


def backward(
    rows: jax.Array, d: jax.Array, kernel: jax.Array, multiplier: jax.Array | None, sinks: tuple, plan: Plan
) -> tuple[jax.Array, tuple]:
    """As `grouped.Products.backward`; the sinks are changed in place. One loop does both, since a block's two products
    can run at the same time."""

    def step(module: jax.Array, start: jax.Array, size: int, carry: tuple) -> tuple:
        d_rows, *sinks = carry
        own, own_d = _block(rows, start, size), _block(d, start, size)
        weight = jnp.ones((size, 1)) if multiplier is None else _block(multiplier, start, size)
        added = _summed_over_rows(own, own_d), _summed_over_rows(weight, own_d.astype(jnp.float32))[0]
        own_d_rows = matmul_transposed(own_d, _of(kernel, module)).astype(d_rows.dtype)
        d_rows = jax.lax.dynamic_update_slice_in_dim(d_rows, own_d_rows, start, 0)
        # Known to be in bounds, XLA adds in one pass over the module's part of the sink.
        added_to = (sink.at[module] for sink in sinks)
        return d_rows, *(at.add(more, mode="promise_in_bounds") for at, more in zip(added_to, added, strict=True))

    d_rows, *sinks = _for_each_block(plan, step, (jax.lax.empty(rows.shape, rows.dtype), *sinks))
    return d_rows, tuple(sinks)


def _summed_over_rows(a: jax.Array, b: jax.Array) -> jax.Array:
    """aᵀ · b in float32. Of so few rows the plain product is as fast as `products.inner_product`, or faster."""
    return jax.lax.dot_general(a, b, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)


def _of(x_N: jax.Array, module: jax.Array) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(x_N, module, keepdims=False, allow_negative_indices=False)


def _block(x: jax.Array, start: jax.Array, size: int) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(x, start, size)


def _for_each_block(plan: Plan, step: Callable[[jax.Array, jax.Array, int, Any], Any], carry: Any) -> Any:
    """carry = step(module, first row, rows, carry) for blocks that cover all rows of every module.

    A module's blocks follow one another: as many of the largest size as fit, then of the next one.
    """
    padded = -(-plan.sizes_N // UNIT) * UNIT
    first = jnp.cumsum(padded) - padded
    busy = jnp.argsort(padded == 0)  # those with rows before those without

    def visit_module(j: jax.Array, carry: Any) -> Any:
        module = busy[j]
        start, rest = first[module], padded[module]
        for size in SIZES:
            if size > plan.choice_P.shape[0]:
                continue

            def visit(i: jax.Array, carry: Any, size: int = size, start: jax.Array = start) -> Any:
                return step(module, start + i * size, size, carry)

            carry = jax.lax.fori_loop(0, rest // size, visit, carry)
            start, rest = start + rest // size * size, rest % size
        return carry

    return jax.lax.fori_loop(0, jnp.count_nonzero(padded), visit_module, carry)
