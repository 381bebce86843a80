"""Grouped products as loops over blocks of rows, each of one module: plain products of one module's matrix at a time.

The loops run over the blocks in use, so that null choices cost nothing. A module's rows are cut into few blocks, as
large as they come: products of many rows are more efficient, and each block reads its module's matrix and, in the
backward pass, adds to its gradient. Best on CPUs; a GPU would be asked before every block whether there is one more.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mom_jax.dispatch import body
from mom_jax.dispatch.body import Pooled
from mom_jax.dispatch.plan import Plan
from mom_jax.products import inner_product, matmul, matmul_transposed

UNIT = 32  # a module's rows begin at a multiple of it
SIZES = (256, 128, 96, 64, 32)  # rows of a block; each makes the program longer


def with_sink(weights: Any, dtype: Any) -> Pooled:
    """Weights ready for uses, kernels that narrow transposed: [N, E, D] of a kernel [N, D, E] with D > E.

    The gradient of a narrowing kernel is made as its transpose (`products.inner_product`). Were kernel and sink not
    held the same way, every block would transpose what it adds.
    """
    weights = jax.tree.map(lambda w: w.swapaxes(1, 2) if w.ndim == 3 and w.shape[1] > w.shape[2] else w, weights)
    return body.with_sink(weights, dtype)


def forward(rows: jax.Array, kernel: jax.Array, bias: jax.Array, multiplier: jax.Array | None, plan: Plan) -> jax.Array:
    """As `grouped.Products.forward`; the kernel may be held transposed."""
    times = matmul if kernel.shape[1] == rows.shape[1] else matmul_transposed

    def step(module: jax.Array, start: jax.Array, size: int, out: jax.Array) -> jax.Array:
        own_bias = bias[module][None]
        if multiplier is not None:
            own_bias = own_bias * _block(multiplier, start, size)
        result = times(_block(rows, start, size), kernel[module]) + own_bias
        return jax.lax.dynamic_update_slice_in_dim(out, result.astype(rows.dtype), start, 0)

    return _for_each_block(plan, step, jnp.zeros((rows.shape[0], bias.shape[1]), rows.dtype))


def backward(d: jax.Array, kernel: jax.Array, plan: Plan) -> jax.Array:
    """As `grouped.Products.backward`."""
    is_transposed = kernel.shape[2] != d.shape[1]
    times = matmul if is_transposed else matmul_transposed

    def step(module: jax.Array, start: jax.Array, size: int, out: jax.Array) -> jax.Array:
        result = times(_block(d, start, size), kernel[module])
        return jax.lax.dynamic_update_slice_in_dim(out, result.astype(d.dtype), start, 0)

    width = kernel.shape[2 if is_transposed else 1]
    return _for_each_block(plan, step, jnp.zeros((d.shape[0], width), d.dtype))


def gradient(sinks: tuple, rows: jax.Array, d: jax.Array, multiplier: jax.Array | None, plan: Plan) -> tuple:
    """As `grouped.Products.gradient`; the sinks are changed in place."""
    is_transposed = sinks[0].shape[2] != d.shape[1]

    def step(module: jax.Array, start: jax.Array, size: int, sinks: tuple) -> tuple:
        kernel_sink, bias_sink = sinks
        own, own_d = _block(rows, start, size), _block(d, start, size)
        kernel_sink = kernel_sink.at[module].add(
            inner_product(own_d, own) if is_transposed else inner_product(own, own_d)
        )
        wide = own_d.astype(jnp.float32)
        if multiplier is not None:
            wide = wide * _block(multiplier, start, size)
        return kernel_sink, bias_sink.at[module].add(wide.sum(0))

    return _for_each_block(plan, step, sinks)


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
