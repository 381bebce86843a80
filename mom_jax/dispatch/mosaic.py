"""Grouped products for Hopper (compute capability 9.0) in bfloat16, as Pallas kernels that Mosaic compiles.

Rows and matrices come by the copy engine, while `wgmma` multiplies what came before. Forward and for the gradient of
the rows only: the gradient of the matrices contracts long columns of rows and is Triton's. Rows lie as
mom_jax/dispatch/triton.py wants them, which also does what `fits` excludes.
"""

import dataclasses
import functools
import importlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from mom_jax.dispatch import triton
from mom_jax.dispatch.plan import Plan
from mom_jax.dispatch.triton import TILE
from mom_jax.platforms import platform

CAPABILITY = (9, 0)  # `wgmma` is Hopper's alone
INTERPRETER = "InterpretGPUParams"  # what the interpreter of such kernels is called in JAX


@dataclasses.dataclass(frozen=True)
class Blocks:
    """How a kernel is cut: columns of the result in a tile, how much of the contracted axis is brought at a time, how
    many such pieces are under way, and programs on each multiprocessor."""

    columns: int = 128
    depth: int = 64
    stages: int = 3
    programs: int = 1


# 128 x 128 sums are 128 of the 154 registers that a thread has (`ptxas -v`, none spilled); twice as many columns spill.
BLOCKS = Blocks()


def fits(dtype: Any, depth: int, width: int) -> bool:
    """Whether the kernel takes matrices of depth x width (in both directions) and numbers of this dtype."""
    return jnp.dtype(dtype).itemsize == 2 and depth % TILE == 0 and width % TILE == 0


def forward(rows: jax.Array, kernel: jax.Array, plan: Plan) -> jax.Array:
    """As `triton.forward`."""
    if not fits(rows.dtype, *kernel.shape[1:]):
        return triton.forward(rows, kernel, plan)
    return _product(rows, kernel, plan, transpose=False)


def backward(d: jax.Array, kernel: jax.Array, plan: Plan) -> jax.Array:
    """As `triton.backward`."""
    if not fits(d.dtype, *kernel.shape[1:]):
        return triton.backward(d, kernel, plan)
    return _product(d, kernel, plan, transpose=True)


def _product(rows: jax.Array, weights: jax.Array, plan: Plan, *, transpose: bool) -> jax.Array:
    from jax.experimental.pallas import mosaic_gpu as plgpu

    blocks = BLOCKS
    depth, width = weights.shape[1:][::-1] if transpose else weights.shape[1:]
    tiles, strips = rows.shape[0] // TILE, width // blocks.columns
    # As `wgmma` reads them: 128 bytes of 8 rows at a time.
    transforms = (plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128))

    def brought(shape: tuple[int, int], place: Callable) -> Any:
        return plgpu.BlockSpec(shape, place, delay_release=1, transforms=transforms)

    def of_weights(strip: jax.Array) -> tuple[tuple[int, int], Callable]:
        if transpose:
            return (blocks.columns, blocks.depth), lambda k: (strip, k)
        return (blocks.depth, blocks.columns), lambda k: (k, strip)

    def computation(module_ref, used_ref, rows_ref, weights_ref, out_ref):  # type: ignore[no-untyped-def]
        @plgpu.nd_loop((tiles * strips,), collective_axes="multiprocessor")
        def visit(loop: Any) -> None:
            # Neighbours share a tile of rows.
            tile, strip = loop.index[0] // strips, loop.index[0] % strips

            @pl.when(tile < used_ref[0])
            def _() -> None:
                def sums(total_ref: Any) -> jax.Array:
                    def multiply(_: Any, rows_block: Any, weights_block: Any) -> None:
                        right = weights_block.transpose((1, 0)) if transpose else weights_block
                        plgpu.wgmma(total_ref, rows_block, right)

                    pipeline = plgpu.emit_pipeline(
                        multiply,
                        grid=(depth // blocks.depth,),
                        in_specs=[brought((TILE, blocks.depth), lambda k: (tile, k)), brought(*of_weights(strip))],
                        max_concurrent_steps=blocks.stages,
                    )
                    pipeline(rows_ref, weights_ref.at[module_ref[tile]])
                    return total_ref[...]

                result = pl.run_scoped(sums, plgpu.ACC((TILE, blocks.columns)))

                def store(out_block: Any) -> None:
                    out_block[...] = result.astype(rows.dtype)
                    plgpu.commit_smem()
                    place = pl.ds(tile * TILE, TILE), pl.ds(strip * blocks.columns, blocks.columns)
                    plgpu.copy_smem_to_gmem(out_block, out_ref.at[place])
                    plgpu.wait_smem_to_gmem(0, wait_read_only=True)

                pl.run_scoped(store, plgpu.SMEM((TILE, blocks.columns), rows.dtype, transforms=transforms))

    kernel = plgpu.kernel(
        computation,
        out_type=jax.ShapeDtypeStruct((rows.shape[0], width), rows.dtype),
        grid=(_multiprocessors() * blocks.programs,),
        grid_names=("multiprocessor",),
        compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Warpgroup),
        # JAX cannot lower the interpreter as one of two branches, as other kernels choose.
        interpret=None if platform() == "gpu" else getattr(plgpu, INTERPRETER)(),
    )
    used = triton.padded(plan.sizes_N).sum(keepdims=True) // TILE
    with jax.named_scope("grouped_product_transposed" if transpose else "grouped_product"):
        return kernel(plan.module_P[::TILE], used, rows, weights)


def is_interpreted() -> bool:
    """Whether JAX can interpret such kernels on other platforms: from version 0.11 on."""
    return hasattr(importlib.import_module("jax.experimental.pallas.mosaic_gpu"), INTERPRETER)


@functools.lru_cache
def _device_multiprocessors() -> int:
    return jax.devices()[0].core_count


def _multiprocessors() -> int:
    """Of the GPU that the program is built for."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    if device is not None and device.num_cores is not None:
        return device.num_cores
    return _device_multiprocessors() if jax.default_backend() == "gpu" else 1
