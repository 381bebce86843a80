"""The card and its two ceilings: how fast it copies, and how fast it multiplies bfloat16."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.measuring import timing
from mom_jax.analysis.chips import chip


def product_flops(size: int) -> float:
    """FLOP/s of a product of two square bfloat16 matrices of random numbers."""
    a, b = (jax.random.normal(jax.random.key(i), (size, size), jnp.bfloat16) for i in range(2))
    run = jax.jit(jnp.matmul)
    return 2 * size**3 / timing.seconds_of(lambda: run(a, b))


def rows(small: bool) -> Iterator[dict[str, Any]]:
    device = jax.devices()[0]
    known = chip(device.device_kind)
    yield timing.machine() | {
        "platform": device.client.platform_version,
        "capability": getattr(device, "compute_capability", None),
        "memory_bytes": (device.memory_stats() or {}).get("bytes_limit"),
        "published": None if known is None else known.name,
        "published_bytes_per_second": None if known is None else known.memory_bandwidth,
        "published_flops": None if known is None else known.peak_flops,
    }
    size = 2**20 if small else 2**30
    x = jax.random.normal(jax.random.key(0), (size // 4,), jnp.float32)
    copy = jax.jit(jnp.negative)
    yield {"copy_bytes_per_second": 2 * size / timing.seconds_of(lambda: copy(x))}
    size = 256 if small else 8192
    yield {"product_size": size, "product_flops": product_flops(size)}
