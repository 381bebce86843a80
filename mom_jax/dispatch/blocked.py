"""The routed computation as loops over blocks of rows, each of one module: plain products, one module at a time.

The loops run over the blocks in use, so that null choices cost nothing. A module's rows are cut into few blocks, as
large as they come, of sizes that are powers of two: products of many rows are more efficient, and each block reads its
module's weights and, in the backward pass, adds to their gradient. That gradient goes into the one buffer that the pass
hands on (`Pooled.sink`): in a scan over steps no gradient of a whole pool is made and added per step.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mom_jax.dispatch import body as shared
from mom_jax.dispatch.body import Body, Pooled, linear
from mom_jax.dispatch.plan import Plan, combine, take

SMALLEST, LARGEST = 64, 128  # limits of the smallest block's rows
SIZES = 2  # how many sizes of blocks there are; each makes the program longer


def with_sink(weights: Any, dtype: Any) -> Pooled:
    """Weights ready for uses, kernels that narrow transposed: [N, E, D] of a kernel [N, D, E] with D > E.

    The gradient of a narrowing kernel is made as its transpose (`products.inner_product`). Were kernel and sink not
    held the same way, every block would transpose what it adds.
    """
    weights = jax.tree.map(lambda w: w.swapaxes(1, 2) if w.ndim == 3 and w.shape[1] > w.shape[2] else w, weights)
    return shared.with_sink(weights, dtype)


def unit(choices: int, num_modules: int) -> int:
    """Rows of the smallest block: a quarter of a module's even share of the choices, as a power of two. A module's rows
    begin at a multiple of it."""
    share = max(1, choices // (4 * num_modules))
    return min(LARGEST, max(SMALLEST, 1 << (share - 1).bit_length()))


def routed(body: Body, x_TxD: jax.Array, pool: Pooled, multiplier_TxK: jax.Array, plan: Plan) -> tuple:
    """Each token's sum of `body` over its choices, and the pool for its next use."""
    rows, sink = _rows(body, x_TxD, pool.weights, pool.sink, multiplier_TxK, plan)
    return combine(rows, plan), Pooled(pool.weights, sink)


def _for_each(plan: Plan, x: jax.Array, multiplier: jax.Array, weights: Any, step: Callable, carry: Any) -> Any:
    """carry = step(module, start, rows of x [G, D], multipliers [G, 1], the module's weights, carry) for all blocks.

    A module's blocks follow one another: as many of the largest size as fit, then the binary digits of the rest.
    """
    choices, modules = plan.slot_TxK.size, plan.sizes_N.shape[0]
    smallest = unit(choices, modules)
    sizes = [smallest << i for i in range(min(SIZES, max(1, (choices // smallest).bit_length())))][::-1]
    padded = -(-plan.sizes_N // smallest) * smallest
    first = jnp.cumsum(padded) - padded
    busy = jnp.argsort(padded == 0)  # those with rows before those without

    def visit_module(j: jax.Array, carry: Any) -> Any:
        module = busy[j]
        # As float32, so that gradients are; a product's own cast makes that the kernel again.
        own = jax.tree.map(lambda w: jax.lax.dynamic_index_in_dim(w, module, keepdims=False), weights)
        own = jax.tree.map(lambda w: w.astype(jnp.float32), own)
        start, rest = first[module], padded[module]
        for size in sizes:

            def visit(i: jax.Array, carry: Any, size: int = size, start: jax.Array = start) -> Any:
                at = start + i * size
                choice = jax.lax.dynamic_slice_in_dim(plan.choice_P, at, size)
                rows = take(x, choice // multiplier.shape[1])
                return step(module, at, rows, take(multiplier.reshape(-1), choice)[:, None], own, carry)

            carry = jax.lax.fori_loop(0, rest // size, visit, carry)
            start, rest = start + rest // size * size, rest % size
        return carry

    return jax.lax.fori_loop(0, jnp.count_nonzero(padded), visit_module, carry)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _rows(body: Body, x: jax.Array, weights: Any, sink: Any, multiplier: jax.Array, plan: Plan) -> tuple:
    """(`body` of every row [P, E], `sink` as it is)."""

    def step(module: jax.Array, start: jax.Array, rows: jax.Array, weight: jax.Array, own: Any, out: jax.Array) -> Any:
        return jax.lax.dynamic_update_slice_in_dim(out, body(linear, rows, weight, own), start, 0)

    one = jax.tree.map(lambda w: w[0], weights)
    like = jax.eval_shape(functools.partial(body, linear), x[:1], multiplier[:1, :1], one)
    out = jnp.zeros((plan.choice_P.shape[0], like.shape[1]), like.dtype)
    return _for_each(plan, x, multiplier, weights, step, out), sink


def _forward(body: Body, x: jax.Array, weights: Any, sink: Any, multiplier: jax.Array, plan: Plan) -> tuple:
    return _rows(body, x, weights, sink, multiplier, plan), (x, weights, multiplier, plan)


def _backward(body: Body, residual: tuple, gradient: tuple) -> tuple:
    x, weights, multiplier, plan = residual
    d_out, sink = gradient

    def step(module: jax.Array, start: jax.Array, rows: jax.Array, weight: jax.Array, own: Any, carry: Any) -> Any:
        d_x, d_multiplier, sink = carry
        _, pullback = jax.vjp(functools.partial(body, linear), rows, weight, own)
        d_rows, d_weight, d_own = pullback(jax.lax.dynamic_slice_in_dim(d_out, start, rows.shape[0]))
        d_x = jax.lax.dynamic_update_slice_in_dim(d_x, d_rows, start, 0)
        d_multiplier = jax.lax.dynamic_update_slice_in_dim(d_multiplier, d_weight[:, 0], start, 0)
        return d_x, d_multiplier, jax.tree.map(lambda s, d: s.at[module].add(d), sink, d_own)

    rows = plan.choice_P.shape[0]
    zero = jnp.zeros((rows, x.shape[1]), x.dtype), jnp.zeros(rows, multiplier.dtype), sink
    d_x, d_multiplier, sink = _for_each(plan, x, multiplier, weights, step, zero)
    return combine(d_x, plan), None, sink, take(d_multiplier, plan.slot_TxK), None


_rows.defvjp(_forward, _backward)
