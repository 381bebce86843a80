"""Causal multi-head attention: one function, by backends for different platforms.

plain    einsums; keeps the probabilities of all pairs for the backward pass: the oracle; dropout and caches use it
blocked  in blocks of queries that skip the keys after them; keeps only its output and one number per query
splash   JAX's Pallas kernel for TPUs
cudnn    cuDNN's fused kernel on GPUs, in bfloat16
triton   JAX's Pallas kernel for GPUs: packed documents, padding, float32, wide heads; elsewhere interpreted, for tests
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mom_jax.attention import fused
from mom_jax.attention.blocked import blocked
from mom_jax.attention.plain import dropout, plain
from mom_jax.attention.view import View
from mom_jax.checks import check_array
from mom_jax.config import ModelConfig
from mom_jax.fields import require
from mom_jax.platforms import AMPERE, has_capability, platform

__all__ = ["KV", "View", "attend", "dropout", "new_kv", "refusal", "resolve"]


class KV(NamedTuple):
    """Keys and values of M slots, [B, h, M, d] each: as attention reads them, so that decoding transposes nothing."""

    key: jax.Array
    value: jax.Array


def new_kv(config: ModelConfig, batch: int, slots: int) -> KV:
    """Empty slots."""
    shape = (batch, config.num_heads, slots, config.head_dim)
    return KV(jnp.zeros(shape, config.dtype), jnp.zeros(shape, config.dtype))


def attend(
    qkv: jax.Array, view: View, config: ModelConfig, *, key: jax.Array | None, cache: KV | None
) -> tuple[jax.Array, KV | None]:
    """Attention over qkv [B, L, 3E]: (output [B, L, E], the cache with this call's keys and values). E is D, or the
    part of it that holds some of the heads.

    Logits and softmax are float32. A token that sees nothing gets zeros; only padding is in that case.
    """
    check_array("attend: qkv", qkv, (None, None, None), float)
    check_array("attend: view.visible", view.visible, (None, qkv.shape[1], None), bool)
    q, k, v = (t.reshape(*t.shape[:2], -1, config.head_dim).swapaxes(1, 2) for t in jnp.split(qkv, 3, -1))
    if cache is not None:
        at = (0, 0, 0 if view.start is None else view.start, 0)
        cache = KV(jax.lax.dynamic_update_slice(cache.key, k, at), jax.lax.dynamic_update_slice(cache.value, v, at))
        if view.start is not None:
            k, v = cache
    drop = key is not None and config.dropout.attention > 0
    packed = view.segment_ids is not None
    backend = "plain" if drop or view.start is not None else resolve(config, q.shape[2], packed=packed)
    with jax.named_scope("attention"):
        if backend == "plain":
            output = plain(q, k, v, view, config.dropout.attention, key)
        else:
            output = WITHOUT_DROPOUT[backend](q, k, v, view)
    output = output.swapaxes(1, 2)
    return output.reshape(*output.shape[:2], -1), cache


def resolve(config: ModelConfig, length: int, *, packed: bool = False) -> str:
    """The backend for sequences of `length`; `auto` goes by platform and by what its fused kernel can do. Raises
    ConfigError where a backend cannot do what it is asked for.

    packed: whether tokens see their own segment only, which cuDNN would be told by a mask of all pairs of tokens.
    """
    backend = config.attention_kernel
    if backend != "auto":
        reason = refusal(backend, config, length)
        require(reason is None, "attention_kernel", backend, reason or "")
        return backend
    if platform() == "tpu" and length % 128 == 0:
        return "splash"
    if platform() == "gpu":
        for fused in ("triton",) if packed else ("cudnn", "triton"):
            if refusal(fused, config, length) is None:
                return fused
    return "blocked"


def refusal(backend: str, config: ModelConfig, length: int) -> str | None:
    """Why a backend cannot do attention for a configuration where the program will run; None where it can."""
    if backend == "splash" and length % 128 != 0:
        return f"takes sequences of a multiple of 128 tokens, not {length}"
    if backend == "cudnn":
        if not has_capability(AMPERE):
            return "needs an NVIDIA GPU of compute capability 8.0 or higher"
        if config.dtype != "bfloat16" or config.head_dim % 8 != 0 or config.head_dim > 128:
            allowed = "takes bfloat16 and heads of a multiple of 8 numbers, 128 at most"
            return f"{allowed}, not {config.dtype} and {config.head_dim}"
    if backend == "triton":
        if platform() == "gpu" and not has_capability(AMPERE):
            return "needs an NVIDIA GPU of compute capability 8.0 or higher"
        if not 16 <= config.head_dim <= 256:
            return f"takes heads of 16 to 256 numbers, not {config.head_dim}"
    return None


# q, k, v [B, h, L, d], view -> [B, h, L, d].
WITHOUT_DROPOUT = {"blocked": blocked, "splash": fused.splash, "cudnn": fused.cudnn, "triton": fused.triton}
