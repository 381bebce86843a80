"""JAX's grouped product for TPUs, a Pallas kernel, with gradients that are grouped products too.

The gradients are put together here: the library's own multiply bfloat16 by float32, and use one tiling for products
whose dimensions are exchanged. On other platforms the kernels are interpreted: slow, for tests.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

TILE = 128  # rows in a tile, of which there must be a whole number


def _tiling(m: int, k: int, n: int) -> tuple[int, int, int]:
    return TILE, min(k, 512), min(n, 1024)


def _by_platform(kernel: Callable, *arrays: jax.Array) -> jax.Array:
    # The library mixes integers and booleans.
    with jax.numpy_dtype_promotion("standard"):
        return jax.lax.platform_dependent(*arrays, tpu=kernel, default=functools.partial(kernel, interpret=True))


def _gmm(rows: jax.Array, kernel: jax.Array, sizes: jax.Array, dtype: jnp.dtype, transpose: bool) -> jax.Array:
    from jax.experimental.pallas.ops.tpu.megablox.gmm import gmm

    def call(rows: jax.Array, kernel: jax.Array, sizes: jax.Array, interpret: bool = False) -> jax.Array:
        return gmm(rows, kernel, sizes, dtype, _tiling, transpose_rhs=transpose, interpret=interpret)

    return _by_platform(call, rows, kernel, sizes)


def _tgmm(rows: jax.Array, d: jax.Array, sizes: jax.Array, dtype: jnp.dtype) -> jax.Array:
    from jax.experimental.pallas.ops.tpu.megablox.gmm import tgmm

    def call(rows: jax.Array, d: jax.Array, sizes: jax.Array, interpret: bool = False) -> jax.Array:
        return tgmm(rows.swapaxes(0, 1), d, sizes, dtype, _tiling, interpret=interpret)

    return _by_platform(call, rows, d, sizes)


@jax.custom_vjp
def product(rows: jax.Array, kernel: jax.Array, sizes: jax.Array) -> jax.Array:
    """rows [P, D] · kernel[module of the row] [N, D, E], [P, E] in float32; rows past the sum of `sizes` are unwritten.

    The operands have the dtype of the rows. sizes: [N] int32, the rows of each module, one after the other. P must be a
    multiple of `TILE`.
    """
    return _gmm(rows, kernel.astype(rows.dtype), sizes, jnp.float32, transpose=False)


def _backward(residual: tuple, d: jax.Array) -> tuple[jax.Array, jax.Array, None]:
    rows, kernel, sizes = residual
    d = d.astype(rows.dtype)
    d_rows = _gmm(d, kernel.astype(rows.dtype), sizes, rows.dtype, transpose=True)
    return d_rows, _tgmm(rows, d, sizes, kernel.dtype), None


product.defvjp(lambda *args: (product(*args), args), _backward)
