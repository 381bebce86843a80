"""Model FLOPs utilisation: the FLOPs that training needs over those that the devices could have done."""

import time
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from mom_jax.analysis.chips import peak_flops
from mom_jax.analysis.cost import train_flops_per_token
from mom_jax.config import ModelConfig


def device_peak(dtype: str) -> float:
    """FLOP/s of the device that trains: from the table of chips, or measured with matrix products (CPUs)."""
    device = jax.devices()[0]
    peak = peak_flops(device.device_kind, dtype)
    if peak is None:
        peak = _measured_peak(dtype)
    return peak


def mesh_peak(dtype: str, mesh: Mesh) -> float:
    """FLOP/s of all devices that train. Simulated devices are one CPU's."""
    first = mesh.devices.flat[0]
    return device_peak(dtype) * (1 if first.platform == "cpu" else mesh.size)


def _measured_peak(dtype: str, size: int = 1024, tries: int = 5) -> float:
    product = jax.jit(lambda a: jnp.matmul(a, a, preferred_element_type=jnp.float32))
    a = jnp.ones((size, size), dtype)
    product(a).block_until_ready()
    seconds = []
    for _ in range(tries):
        start = time.perf_counter()
        product(a).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)


def utilisation(
    config: ModelConfig, length: int, tokens_per_s: float, peak: float, routers: dict[str, dict[str, Any]]
) -> float:
    """MFU as a fraction. What counts is what a token used: modules that it took, not the pool, and not SKIP.

    peak: FLOP/s of all devices together.
    """
    taken = {side: summary["taken"] for side, summary in routers.items()}
    flops = train_flops_per_token(config, length, attn_taken=taken.get("attention"), ffn_taken=taken.get("ffn"))
    return flops * tokens_per_s / peak
