"""The card and its two ceilings: how fast it copies, and how fast it multiplies bfloat16."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import timing
from mom_jax.analysis.chips import chip


def product_flops(size: int) -> float:
    """FLOP/s of a product of two square bfloat16 matrices of random numbers."""
    a, b = (jax.random.normal(jax.random.key(i), (size, size), jnp.bfloat16) for i in range(2))
    return 2 * size**3 / timing.seconds_of(jax.jit(jnp.matmul), a, b)


def rows(small: bool) -> Iterator[dict[str, Any]]:
    device = jax.devices()[0]
    memory = (device.memory_stats() or {}).get("bytes_limit") if hasattr(device, "memory_stats") else None
    yield timing.machine() | {
        "capability": getattr(device, "compute_capability", None),
        "memory_bytes": memory,
        "published": None if (known := chip(device.device_kind)) is None else known.name,
    }
    size = 2**20 if small else 2**30
    x = jax.random.normal(jax.random.key(0), (size // 4,), jnp.float32)
    yield {"copy_bytes_per_second": 2 * size / timing.seconds_of(jax.jit(jnp.negative), x)}
    yield {"product_size": 256 if small else 8192, "product_flops": product_flops(256 if small else 8192)}
