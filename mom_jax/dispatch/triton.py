"""Grouped products for GPUs as Pallas kernels that Triton compiles: bfloat16 and float32, from Ampere on.

The plan lets every module's rows begin at a multiple of `TILE` rows, so that a tile has rows of one module: kernels
need no masks within tiles, and leave out the tiles behind the last row, so that null choices cost nothing. On other
platforms than CUDA they are interpreted: slow, for tests.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from mom_jax.dispatch.plan import Plan
from mom_jax.platforms import platform

TILE = 128  # rows of a tile


@dataclasses.dataclass(frozen=True)
class Blocks:
    """How a kernel is cut: columns of the result that a program computes, how much of the contracted axis it has at a
    time, and Triton's warps and stages of a program. A tile of the gradient has `columns` rows too."""

    columns: int
    depth: int
    warps: int
    stages: int


# A table instead of a search at run time. Compiled for compute capability 9.0 (`ptxas -v`) these use `wgmma` and at
# most 144 registers a thread, of which none spill; two programs fit a multiprocessor. On a card
# `python -m benchmarks.gpu --only grouped` tries others.
PRODUCT = {2: Blocks(128, 64, 8, 3), 4: Blocks(64, 32, 4, 3)}  # by the bytes of a number
GRADIENT = {2: Blocks(128, 64, 8, 3), 4: Blocks(64, 32, 4, 3)}


def forward(rows: jax.Array, kernel: jax.Array, plan: Plan) -> jax.Array:
    """rows [P, D] · kernel[module of the row] [N, D, E], [P, E] in the dtype of the rows. Each module's rows begin at a
    multiple of `TILE`."""
    return _product(rows, kernel, plan, transpose=False)


def backward(d: jax.Array, kernel: jax.Array, plan: Plan) -> jax.Array:
    """d [P, E] · kernel[module of the row]ᵀ [N, D, E], [P, D] in the dtype of d."""
    return _product(d, kernel, plan, transpose=True)


def gradient(sinks: tuple, rows: jax.Array, d: jax.Array, multiplier: jax.Array | None, plan: Plan) -> tuple:
    """The sinks of a kernel [N, D, E] and a bias [N, E], float32, plus rowsᵀ · d and multiplierᵀ · d, module by module:
    of rows [P, D], d [P, E], multiplier [P, 1]. They are changed in place, and only where a module has rows."""
    blocks = GRADIENT[rows.dtype.itemsize]
    depth, width, modules = rows.shape[1], d.shape[1], plan.sizes_N.shape[0]
    tall, wide = _block(depth, blocks.columns), _block(width, blocks.columns)

    def kernel(start_ref, end_ref, rows_ref, d_ref, *rest):  # type: ignore[no-untyped-def]
        multiplier_ref, (kernel_ref, bias_ref) = rest[0] if multiplier is not None else None, rest[-2:]
        column, row, module = (pl.program_id(i) for i in range(3))
        own_rows, own_columns = row * tall + jnp.arange(tall), column * wide + jnp.arange(wide)
        start, end = start_ref[module], end_ref[module]

        def over_rows(add: Callable, begin: jax.Array) -> jax.Array:
            def step(i: jax.Array, total: jax.Array) -> jax.Array:
                return add(i * blocks.depth + jnp.arange(blocks.depth), total)

            # Up to the last row alone: rows behind it in the tile are zeros.
            return jax.lax.fori_loop(start // blocks.depth, pl.cdiv(end, blocks.depth), step, begin)

        @pl.when(end > start)
        def _() -> None:
            def add(at: jax.Array, total: jax.Array) -> jax.Array:
                a, b = _load(rows_ref, at, own_rows), _load(d_ref, at, own_columns)
                return total + plgpu.dot(a, b, trans_a=True).astype(jnp.float32)

            begin = _load(kernel_ref, own_rows, own_columns, module)
            _store(kernel_ref, over_rows(add, begin), own_rows, own_columns, module)

        @pl.when((end > start) & (row == 0))
        def _() -> None:
            def add(at: jax.Array, total: jax.Array) -> jax.Array:
                block = _load(d_ref, at, own_columns).astype(jnp.float32)
                return total + (block if multiplier_ref is None else block * multiplier_ref[at][:, None]).sum(0)

            own_module = module + jnp.arange(1)
            begin = _load(bias_ref, own_module, own_columns)
            _store(bias_ref, over_rows(add, begin[0])[None], own_module, own_columns)

    room = padded(plan.sizes_N)
    start = jnp.cumsum(room) - room
    multipliers = () if multiplier is None else (multiplier[:, 0],)
    inputs = (start, start + plan.sizes_N, rows, d, *multipliers, *sinks)
    return tuple(
        pl.pallas_call(
            kernel,
            out_shape=[jax.ShapeDtypeStruct(sink.shape, sink.dtype) for sink in sinks],
            grid=(pl.cdiv(width, wide), pl.cdiv(depth, tall), modules),
            input_output_aliases={len(inputs) - 2: 0, len(inputs) - 1: 1},
            name="grouped_gradient",
            **_how(blocks),
        )(*inputs)
    )


def _product(rows: jax.Array, weights: jax.Array, plan: Plan, *, transpose: bool) -> jax.Array:
    blocks = PRODUCT[rows.dtype.itemsize]
    depth, width = weights.shape[1:][::-1] if transpose else weights.shape[1:]
    columns, step = _block(width, blocks.columns), _block(depth, blocks.depth)

    def kernel(module_ref, used_ref, rows_ref, weights_ref, out_ref):  # type: ignore[no-untyped-def]
        # Neighbours share a tile of rows: a module's weights stay in the cache, and rows are read once.
        column, tile = pl.program_id(0), pl.program_id(1)

        @pl.when(tile < used_ref[0])
        def _() -> None:
            module = module_ref[tile]
            own_rows, own_columns = tile * TILE + jnp.arange(TILE), column * columns + jnp.arange(columns)

            def add(i: jax.Array, total: jax.Array) -> jax.Array:
                at = i * step + jnp.arange(step)
                a = _load(rows_ref, own_rows, at)
                b = _load(weights_ref, *((own_columns, at) if transpose else (at, own_columns)), module)
                return total + plgpu.dot(a, b, trans_b=transpose).astype(jnp.float32)

            zero = jnp.zeros((TILE, columns), jnp.float32)
            total = jax.lax.fori_loop(0, pl.cdiv(depth, step), add, zero)
            _store(out_ref, total.astype(out_ref.dtype), own_rows, own_columns)

    used = padded(plan.sizes_N).sum(keepdims=True) // TILE
    return pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct((rows.shape[0], width), rows.dtype),
        grid=(pl.cdiv(width, columns), rows.shape[0] // TILE),
        name="grouped_product_transposed" if transpose else "grouped_product",
        **_how(blocks),
    )(plan.module_P[::TILE], used, rows, weights)


def _how(blocks: Blocks) -> dict[str, Any]:
    parameters = plgpu.CompilerParams(num_warps=blocks.warps, num_stages=blocks.stages)
    return {"compiler_params": parameters, "interpret": platform() != "gpu"}


def padded(sizes: jax.Array) -> jax.Array:
    """The rows of the tiles that modules with so many rows have."""
    return -(-sizes // TILE) * TILE


def _block(size: int, largest: int) -> int:
    """A power of two that Triton can multiply, at least 16."""
    return max(16, min(largest, 1 << (size - 1).bit_length()))


def _inside(rows: jax.Array, columns: jax.Array, height: int, width: int) -> jax.Array | None:
    """Which elements of a block lie within a matrix; None where its sizes are multiples of the block's."""
    if height % rows.size == 0 and width % columns.size == 0:
        return None
    return (rows < height)[:, None] & (columns < width)[None]


def _load(ref, rows: jax.Array, columns: jax.Array, *at: jax.Array) -> jax.Array:  # type: ignore[no-untyped-def]
    """A block of the matrix ref[at], zeros where it ends before the block does."""
    inside = _inside(rows, columns, *ref.shape[-2:])
    return plgpu.load(ref.at[*at, rows[:, None], columns[None]], mask=inside, other=None if inside is None else 0)


def _store(ref, block: jax.Array, rows: jax.Array, columns: jax.Array, *at: jax.Array) -> None:  # type: ignore[no-untyped-def]
    plgpu.store(ref.at[*at, rows[:, None], columns[None]], block, mask=_inside(rows, columns, *ref.shape[-2:]))
