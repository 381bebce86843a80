"""Causal multi-head attention: one function, by backends for different platforms.

plain    einsums; keeps the probabilities of all pairs for the backward pass: the oracle; dropout and caches use it
blocked  in blocks of queries that skip the keys after them; keeps only its output and one number per query
splash   JAX's Pallas kernel for TPUs
cudnn    cuDNN's fused kernel on GPUs
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mom_jax.config import ModelConfig
from mom_jax.fields import require
from mom_jax.platforms import platform
from mom_jax.products import transposed
from mom_jax.remat import PRODUCT, save

MIN_QUERIES, MAX_BLOCKS = 64, 8  # a block of queries; more blocks skip more and make a longer program


class KV(NamedTuple):
    """Keys and values of M slots, [B, h, M, d] each: as attention reads them, so that decoding transposes nothing."""

    key: jax.Array
    value: jax.Array


def new_kv(config: ModelConfig, batch: int, slots: int) -> KV:
    """Empty slots."""
    shape = (batch, config.num_heads, slots, config.head_dim)
    return KV(jnp.zeros(shape, config.dtype), jnp.zeros(shape, config.dtype))


class View(NamedTuple):
    """What attention may see in this call.

    visible: [B or 1, L, M] bool, token l sees slot m. start: the slot of the call's first token where there are earlier
    ones in a cache; without any M = L and no token sees a later one. segment_ids: [B, L] int32 or None: another way to
    say `visible` for tokens that are not padding: where given, the earlier tokens of the same segment, else all earlier
    tokens.
    """

    visible: jax.Array
    start: jax.Array | None = None
    segment_ids: jax.Array | None = None


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zeroes entries with probability `rate` and scales the others up; without a key nothing happens."""
    if key is None or rate == 0:
        return x
    keep = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(keep, x / (1 - rate), jnp.zeros_like(x))


def attend(
    qkv: jax.Array, view: View, config: ModelConfig, *, key: jax.Array | None, cache: KV | None
) -> tuple[jax.Array, KV | None]:
    """Attention over qkv [B, L, 3E]: (output [B, L, E], the cache with this call's keys and values). E is D, or the
    part of it that holds some of the heads.

    Logits and softmax are float32. A token that sees nothing gets zeros; only padding is in that case.
    """
    q, k, v = (t.reshape(*t.shape[:2], -1, config.head_dim).swapaxes(1, 2) for t in jnp.split(qkv, 3, -1))
    if cache is not None:
        at = (0, 0, 0 if view.start is None else view.start, 0)
        cache = KV(jax.lax.dynamic_update_slice(cache.key, k, at), jax.lax.dynamic_update_slice(cache.value, v, at))
        if view.start is not None:
            k, v = cache
    drop = key is not None and config.dropout.attention > 0
    backend = "plain" if drop or view.start is not None else resolve(config, q.shape[2])
    with jax.named_scope("attention"):
        if backend == "plain":
            output = _plain(q, k, v, view, config.dropout.attention, key)
        else:
            output = {"blocked": _blocked, "splash": _splash, "cudnn": _cudnn}[backend](q, k, v, view)
    output = output.swapaxes(1, 2)
    return output.reshape(*output.shape[:2], -1), cache


def resolve(config: ModelConfig, length: int) -> str:
    """The backend for sequences of `length`; `auto` goes by platform and by what its fused kernel can do."""
    if config.attention_kernel != "auto":
        allowed = f"takes sequences of a multiple of 128 tokens, not {length}"
        require(config.attention_kernel != "splash" or length % 128 == 0, "attention_kernel", "splash", allowed)
        return config.attention_kernel
    half = config.dtype == "bfloat16"
    if platform() == "tpu" and length % 128 == 0:
        return "splash"
    if platform() == "gpu" and half and config.head_dim % 8 == 0 and config.head_dim <= 128:
        return "cudnn"
    return "blocked"


# All below: q [B, h, L, d], k and v [B, h, M, d] -> [B, h, L, d].


def _plain(q: jax.Array, k: jax.Array, v: jax.Array, view: View, rate: float, key: jax.Array | None) -> jax.Array:
    p, total, _ = _exponentials(q, k, view.visible)
    return jnp.einsum("bhlm,bhmd->bhld", dropout(p / total, rate, key).astype(v.dtype), v)


def _logits(q: jax.Array, k: jax.Array) -> jax.Array:
    return jnp.einsum("bhld,bhmd->bhlm", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5


def _exponentials(q: jax.Array, k: jax.Array, visible: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """exp(logits - m) [B, h, L, M], its sum and m [B, h, L, 1]; where nothing is visible zeros, and a sum of 1."""
    logits, visible = _logits(q, k), visible[:, None]
    largest = jax.lax.stop_gradient(jnp.where(visible, logits, jnp.finfo(jnp.float32).min).max(-1, keepdims=True))
    p = jnp.exp(jnp.where(visible, logits - largest, -jnp.inf))
    total = p.sum(-1, keepdims=True)
    return p, jnp.where(total > 0, total, 1.0), largest


def _ranges(length: int) -> list[slice]:
    """The blocks of queries. A block sees no key after its end."""
    size = max(MIN_QUERIES, -(-length // MAX_BLOCKS))
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


def _blocked(q: jax.Array, k: jax.Array, v: jax.Array, view: View) -> jax.Array:
    return _attention(q, k, v, view.visible)


@jax.custom_vjp
def _attention(q: jax.Array, k: jax.Array, v: jax.Array, visible: jax.Array) -> jax.Array:
    return _attention_forward(q, k, v, visible)[0]


def _attention_forward(q: jax.Array, k: jax.Array, v: jax.Array, visible: jax.Array) -> tuple[jax.Array, tuple]:
    outputs, norms = [], []
    for part in _ranges(q.shape[2]):
        keys = slice(part.stop)
        p, total, largest = _exponentials(q[:, :, part], k[:, :, keys], visible[:, part, keys])
        output = jnp.einsum("bhlm,bhmd->bhld", p.astype(v.dtype), v[:, :, keys], preferred_element_type=jnp.float32)
        outputs.append((output / total).astype(v.dtype))
        norms.append(largest + jnp.log(total))
    output = save(jnp.concatenate(outputs, 2))
    norm = save(jnp.concatenate(norms, 2))
    return output, (q, k, v, visible, output, norm)


def _attention_backward(residual: tuple, d: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    """The probabilities are made again from the logits and their logsumexp (FlashAttention, arXiv 2205.14135)."""
    q, k, v, visible, output, norm = residual
    correction = (output.astype(jnp.float32) * d.astype(jnp.float32)).sum(-1, keepdims=True)
    batch, heads, length, width = q.shape
    d_q, d_k, d_v = [], *jnp.zeros((2, batch, heads, width, length), jnp.float32)
    scale = q.shape[-1] ** -0.5

    def times(form: str, a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.einsum(form, a.astype(q.dtype), b.astype(q.dtype), preferred_element_type=jnp.float32)

    q_t, d_t = transposed(q), transposed(d)
    for part in _ranges(q.shape[2]):
        keys = slice(part.stop)
        logits = _logits(q[:, :, part], k[:, :, keys])
        p = jnp.exp(jnp.where(visible[:, None, part, keys], logits - norm[:, :, part], -jnp.inf))
        d_p = times("bhld,bhmd->bhlm", d[:, :, part], v[:, :, keys])
        d_logits = p * (d_p - correction[:, :, part]) * scale
        d_q.append(times("bhlm,bhmd->bhld", d_logits, k[:, :, keys]).astype(q.dtype))
        d_k = d_k.at[..., keys].add(times("bhdl,bhlm->bhdm", q_t[..., part], d_logits))
        d_v = d_v.at[..., keys].add(times("bhdl,bhlm->bhdm", d_t[..., part], p))
    d_k, d_v = (t.swapaxes(2, 3).astype(q.dtype) for t in (d_k, d_v))
    return jnp.concatenate(d_q, 2), d_k, d_v, None


_attention.defvjp(_attention_forward, _attention_backward)


def _cudnn(q: jax.Array, k: jax.Array, v: jax.Array, view: View) -> jax.Array:
    q, k, v = (t.swapaxes(1, 2) for t in (q, k, v))
    mask = None if view.segment_ids is None else view.visible[:, None]
    output = jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=mask is None, implementation="cudnn")
    return output.swapaxes(1, 2)


def _splash(q: jax.Array, k: jax.Array, v: jax.Array, view: View) -> jax.Array:
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
