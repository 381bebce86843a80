"""Attention by kernels that others keep: JAX's for TPUs and GPUs, and cuDNN's. q, k, v [B, h, L, d] -> [B, h, L, d]."""

import dataclasses
import functools
import importlib
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mom_jax.attention.view import View
from mom_jax.platforms import platform
from mom_jax.remat import PRODUCT, save


def cudnn(q: jax.Array, k: jax.Array, v: jax.Array, view: View) -> jax.Array:
    """cuDNN's attention of q, k, v [B, h, L, d], bfloat16, [B, h, L, d]."""
    # The backward pass takes even lengths only; what is added at the end is seen by no other token.
    length, odd = q.shape[2], q.shape[2] % 2
    q, k, v = (jnp.pad(t.swapaxes(1, 2), ((0, 0), (0, odd), (0, 0), (0, 0))) for t in (q, k, v))
    mask = None
    if view.segment_ids is not None:
        mask = jnp.pad(view.visible[:, None], ((0, 0), (0, 0), (0, odd), (0, odd)))
    output = jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=mask is None, implementation="cudnn")
    return output[:, :length].swapaxes(1, 2)


def triton(q: jax.Array, k: jax.Array, v: jax.Array, view: View) -> jax.Array:
    """JAX's Pallas attention for GPUs of q, k, v [B, h, L, d] in their dtype, [B, h, L, d]."""
    length, (blocks, multiple) = q.shape[2], _triton_blocks(q.shape[3], q.dtype.itemsize)
    more = -length % multiple
    # What is added at the end is seen by no other token, and is a segment of its own.
    q, k, v = (jnp.pad(t.swapaxes(1, 2), ((0, 0), (0, more), (0, 0), (0, 0))) for t in (q, k, v))
    ids = view.segment_ids
    ids = None if ids is None else jnp.pad(ids, ((0, 0), (0, more)), constant_values=-2)
    return _flash(blocks, q, k, v, ids)[:, :length].swapaxes(1, 2)


def _triton_blocks(width: int, itemsize: int) -> tuple[tuple[int, ...], int]:
    """The kernel's blocks, of which wider heads and longer numbers fill a multiprocessor's memory sooner; and what the
    sequence must be a multiple of."""
    block = 128 if width * itemsize <= 128 else 64 if width * itemsize <= 256 else 32
    return (block, block, *[32] * 4), block


def _library() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # from JAX 0.11 on, which names nothing that does as much
        return importlib.import_module("jax.experimental.pallas.ops.gpu.attention")


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _flash(blocks: tuple[int, ...], q: jax.Array, k: jax.Array, v: jax.Array, ids: jax.Array | None) -> jax.Array:
    """The library's kernel, q, k, v [B, L, h, d]; put together here so that `remat` can keep what it has computed."""
    return _flash_forward(blocks, q, k, v, ids)[0]


def _flash_forward(blocks: tuple[int, ...], *given: Any) -> tuple[jax.Array, tuple]:
    library, width = _library(), given[0].shape[-1]
    with jax.numpy_dtype_promotion("standard"):  # the library mixes integers and floats
        out, norm = library.mha(
            *given, width**-0.5, True, library.BlockSizes(*blocks), interpret=platform() != "gpu", return_residuals=True
        )
    out, norm = save(out), save(norm)
    return out, (*given, out, norm)


def _flash_backward(blocks: tuple[int, ...], residual: tuple, d: jax.Array) -> tuple:
    library, width = _library(), d.shape[-1]
    options = (
        width**-0.5,
        True,
        library.BlockSizes(*blocks),
        "triton",
        None,
        2,
        None,
        platform() != "gpu",
        False,
        False,
    )
    with jax.numpy_dtype_promotion("standard"):
        return library.mha.bwd(*options, residual, d)


_flash.defvjp(_flash_forward, _flash_backward)


def splash(q: jax.Array, k: jax.Array, v: jax.Array, view: View) -> jax.Array:
    """JAX's splash attention for TPUs of q, k, v [B, h, L, d] in their dtype, [B, h, L, d]; L a multiple of 128."""
    from jax.experimental.pallas.ops.tpu.splash_attention import SegmentIds

    def call(q: jax.Array, k: jax.Array, v: jax.Array, ids: jax.Array | None, *, interpret: bool = False) -> jax.Array:
        kernel = _splash_kernel(q.shape[1], q.shape[2], interpret)
        if ids is None:
            return jax.vmap(kernel)(q, k, v)
        return jax.vmap(lambda q, k, v, ids: kernel(q, k, v, segment_ids=SegmentIds(ids, ids)))(q, k, v, ids)

    q = (q.astype(jnp.float32) * q.shape[-1] ** -0.5).astype(q.dtype)
    interpreted = functools.partial(call, interpret=True)
    return jax.lax.platform_dependent(q, k, v, view.segment_ids, tpu=call, default=interpreted)


@functools.lru_cache
def _splash_kernel(heads: int, length: int, interpret: bool) -> Callable:
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask

    mask = splash_attention_mask.MultiHeadMask([splash_attention_mask.CausalMask((length, length))] * heads)
    block = max(size for size in (128, 256, 512) if length % size == 0)
    fields = dataclasses.fields(splash_attention_kernel.BlockSizes)
    sizes: Any = {field.name: block for field in fields if field.name.startswith("block_")}
    with jax.ensure_compile_time_eval():  # the kernel holds arrays, which must not belong to the trace that runs now
        return splash_attention_kernel.make_splash_mha(
            mask,
            head_shards=1,
            q_seq_shards=1,
            block_sizes=splash_attention_kernel.BlockSizes(**sizes),
            residual_checkpoint_name=PRODUCT,
            interpret=interpret,
        )
