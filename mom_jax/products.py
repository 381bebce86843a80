"""Matrix products: operands in the compute dtype, sums in float32, gradients that are products of the fast kind."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def transposed(x: jax.Array) -> jax.Array:
    """The transpose of the last two axes, on a CPU as an array of its own.

    XLA's products on CPUs are slow, and run beside others on one thread, where the left operand is contracted over its
    rows. The barrier keeps XLA from folding the transpose into the product that it is made for.
    """
    return _apart(lambda x: jax.lax.optimization_barrier(x.swapaxes(-1, -2)), lambda x: x.swapaxes(-1, -2), x)


def _apart(cpu: Callable, default: Callable, x: jax.Array) -> jax.Array:
    return jax.lax.platform_dependent(x, cpu=cpu, default=default)


def inner_product(a: jax.Array, b: jax.Array) -> jax.Array:
    """aᵀ · b of a [T, D] and b [T, E] in float32: the gradient of a kernel."""
    if a.shape[1] <= b.shape[1]:
        return matmul(transposed(a), b)
    # The narrower one is transposed, and the result, without which XLA would again turn the product round.
    product = matmul(transposed(b), a)
    return _apart(lambda x: jax.lax.optimization_barrier(x).T, lambda x: x.T, product)


def matmul(a: jax.Array, b: jax.Array) -> jax.Array:
    """a [T, D] · b [D, E] in float32."""
    return jax.lax.dot_general(a, b, (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32)


def matmul_transposed(a: jax.Array, b: jax.Array) -> jax.Array:
    """a [T, E] · bᵀ, b [D, E], in float32."""
    return jax.lax.dot_general(a, b, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)


@jax.custom_vjp
def product(rows: jax.Array, kernel: jax.Array) -> jax.Array:
    """rows [T, D] · kernel [D, E] in float32, the operands in the dtype of the rows.

    The gradient of a float32 kernel is float32: plain differentiation would round it to the dtype of the rows.
    """
    return matmul(rows, kernel.astype(rows.dtype))


def _forward(rows: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple]:
    return product(rows, kernel), (rows, kernel)


def _backward(residual: tuple, d: jax.Array) -> tuple[jax.Array, jax.Array]:
    rows, kernel = residual
    d = d.astype(rows.dtype)
    d_rows = matmul_transposed(d, kernel.astype(rows.dtype)).astype(rows.dtype)
    return d_rows, inner_product(rows, d).astype(kernel.dtype)


product.defvjp(_forward, _backward)
