"""JAX's grouped products for TPUs, Pallas kernels. On other platforms they are interpreted: slow, for tests.

The gradients are put together here: the library's own multiply bfloat16 by float32, and use one tiling for products
whose dimensions are exchanged.
"""

import functools
from collections.abc import Callable

import jax

from mom_jax.dispatch.plan import Plan

TILE = 128  # rows in a tile, of which there must be a whole number


def _tiling(m: int, k: int, n: int) -> tuple[int, int, int]:
    return TILE, min(k, 512), min(n, 1024)


def _by_platform(kernel: Callable, *arrays: jax.Array) -> jax.Array:
    # The library mixes integers and booleans.
    with jax.numpy_dtype_promotion("standard"):
        return jax.lax.platform_dependent(*arrays, tpu=kernel, default=functools.partial(kernel, interpret=True))


def _gmm(rows: jax.Array, kernel: jax.Array, sizes: jax.Array, transpose: bool) -> jax.Array:
    from jax.experimental.pallas.ops.tpu.megablox.gmm import gmm

    def call(rows: jax.Array, kernel: jax.Array, sizes: jax.Array, interpret: bool = False) -> jax.Array:
        # The kernel's sums are float32; a result in float32 would only be rounded by whoever takes it, from twice the
        # memory.
        return gmm(rows, kernel, sizes, rows.dtype, _tiling, transpose_rhs=transpose, interpret=interpret)

    return _by_platform(call, rows, kernel, sizes)


def forward(rows: jax.Array, kernel: jax.Array, plan: Plan) -> jax.Array:
    """rows [P, D] · kernel[module of the row] [N, D, E], [P, E] in the dtype of the rows. P must be a multiple of
    `TILE`; modules' rows may begin anywhere."""
    return _gmm(rows, kernel, plan.sizes_N, transpose=False)


def backward(d: jax.Array, kernel: jax.Array, plan: Plan) -> jax.Array:
    """d [P, E] · kernel[module of the row]ᵀ [N, D, E], [P, D] in the dtype of d."""
    return _gmm(d, kernel, plan.sizes_N, transpose=True)


def gradient(sink: jax.Array, rows: jax.Array, d: jax.Array, plan: Plan) -> jax.Array:
    """sink [N, D, E] + rowsᵀ · d, module by module; the sink is changed in place."""
    from jax.experimental.pallas.ops.tpu.megablox.gmm import tgmm

    def call(sink: jax.Array, rows: jax.Array, d: jax.Array, sizes: jax.Array, interpret: bool = False) -> jax.Array:
        return tgmm(rows.swapaxes(0, 1), d, sizes, sink.dtype, _tiling, existing_out=sink, interpret=interpret)

    return _by_platform(call, sink, rows, d, plan.sizes_N)
