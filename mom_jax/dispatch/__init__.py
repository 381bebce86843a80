"""The routed computation: each token's sum over the modules that it chose, by backends for different platforms.

`make_plan` sorts a routing decision once; `routed` applies a `ModuleComputation` with stacked weights to the rows of a
plan. Backends differ in how they multiply rows grouped by module:

dense     every module for every row; the oracle of the others
blocked   a loop over blocks of rows of one module: pays for the chosen rows only, on any platform; best on CPUs
ragged    `jax.lax.ragged_dot`
megablox  JAX's Pallas kernels for TPUs; elsewhere interpreted, for tests
triton    Pallas kernels for GPUs; elsewhere interpreted, for tests
mosaic    the same, with products for Hopper's own units; interpreted elsewhere by newer versions of JAX only
capacity  one batched product with a fixed number of rows per module: drops what does not fit
gathered  a module's matrices out of the stack for each choice, or all modules: decoding on accelerators
branched  a branch per module, weights that are arrays of their own: decoding on CPUs; without gradients

Where devices along `module` have some modules each, the rows travel to them and back (`exchange_plan`, exchanged.py);
each device computes with one of these backends.
"""

from typing import Any

import jax
import jax.numpy as jnp

from mom_jax.checks import check_array
from mom_jax.config import ModelConfig
from mom_jax.dispatch import branched, exchanged, gathered, grouped, mosaic
from mom_jax.dispatch.branched import is_unstacked
from mom_jax.dispatch.computation import Linear, ModuleComputation, PooledWeights, linear, weighted_linear, with_sink
from mom_jax.dispatch.exchanged import ExchangePlan, exchange_plan
from mom_jax.dispatch.plan import Plan, limited
from mom_jax.fields import require
from mom_jax.platforms import AMPERE, compute_capability, has_capability, platform

BACKENDS = tuple(grouped.PRODUCTS)
DECODING: dict[str, Any] = {"gathered": gathered, "branched": branched}  # without gradients

__all__ = [
    "BACKENDS",
    "ExchangePlan",
    "Linear",
    "ModuleComputation",
    "Plan",
    "PooledWeights",
    "exchange_plan",
    "is_unstacked",
    "limited",
    "linear",
    "weighted_linear",
]


def for_decoding(pool: PooledWeights, tokens: int) -> str | None:
    """The backend of a pool that was made ready for decoding; None for another one, or more tokens than a few."""
    if is_unstacked(pool):
        return "branched"
    return "gathered" if pool.sink is None and tokens <= gathered.MOST else None


def resolve(config: ModelConfig) -> str:
    """The backend of a configuration; `auto` goes by platform. Raises ConfigError where it does not run there.

    `ragged_dot` multiplies every row by every module on a CPU, on a GPU, and for the gradient of the weights on a TPU.
    """
    if config.capacity_factor is not None:
        return "capacity"
    if config.dispatch == "auto":
        return {"cpu": "blocked", "tpu": "megablox"}.get(platform()) or _of_gpu(config)
    reason = refusal(config.dispatch)
    require(reason is None, "dispatch", config.dispatch, reason or "")
    return config.dispatch


def _of_gpu(config: ModelConfig) -> str:
    if config.dtype == "bfloat16" and compute_capability() == mosaic.CAPABILITY:
        return "mosaic"
    return "triton" if has_capability(AMPERE) else "blocked"


def refusal(backend: str) -> str | None:
    """Why a backend does not run on the platform that the program is built for; None where it does."""
    capability = compute_capability()
    if backend == "triton" and platform() == "gpu" and not has_capability(AMPERE):
        return f"needs an NVIDIA GPU of compute capability 8.0 or higher, and this one has {_said(capability)}"
    if backend == "mosaic" and platform() == "gpu" and capability != mosaic.CAPABILITY:
        return f"needs an NVIDIA GPU of compute capability 9.0, and this one has {_said(capability)}"
    if backend == "mosaic" and platform() != "gpu" and not mosaic.is_interpreted():
        return "needs an NVIDIA GPU of compute capability 9.0, or JAX's interpreter of such kernels"
    return None


def _said(capability: tuple[int, int] | None) -> str:
    return "none" if capability is None else ".".join(map(str, capability))


def runs_here(backend: str) -> bool:
    """Whether the backend runs on the platform that the program is built for, interpreted or not."""
    return refusal(backend) is None


def make_plan(index_TxK: jax.Array, num_modules: int, backend: str, capacity_factor: float | None = None) -> Plan:
    """Groups the choices `index`, int32, by module for a backend; an index of `num_modules` or more is a null.

    capacity_factor: room per module over an even share of all choices; `capacity` needs it, no other has it.
    """
    check_array("make_plan: index_TxK", index_TxK, (None, None), jnp.int32)
    if backend in DECODING:
        return DECODING[backend].plan(index_TxK, num_modules)
    return grouped.make_plan(index_TxK, num_modules, backend, capacity_factor)


def pooled(weights: Any, backend: str, dtype: Any) -> PooledWeights:
    """A pool's float32 weights [N, ...], made ready for uses by `routed`; each use returns them for the next.

    Kernels are cast to `dtype`, that of the rows, once for all uses; their gradients are added up in float32.
    """
    if backend == "branched":
        return branched.unstack(weights)
    return with_sink(weights, dtype)


def routed(
    computation: ModuleComputation,
    x_TxD: jax.Array,
    pool: PooledWeights,
    multiplier_TxK: jax.Array,
    plan: Plan | ExchangePlan,
    backend: str,
    *,
    weighted: bool = True,
) -> tuple[jax.Array, PooledWeights]:
    """Each token's sum of `computation` over the modules that it chose, [T, E], and the pool for its next use.

    x: tokens in the compute dtype. multiplier: float32, how much each choice weighs. plan: of the same T·K choices, by
    `make_plan` or `exchange_plan` for the same backend. weighted: whether the computation looks at the multiplier.
    Raises AssertionError for arrays that do not fit the plan.
    """
    choices = plan.choices
    check_array("routed: x_TxD", x_TxD, (choices[0], None), float)
    check_array("routed: multiplier_TxK", multiplier_TxK, choices, jnp.float32)
    if isinstance(plan, ExchangePlan):
        return exchanged.routed(computation, x_TxD, pool, multiplier_TxK, plan, backend, weighted=weighted)
    if backend in DECODING:
        return DECODING[backend].routed(computation, x_TxD, pool, multiplier_TxK, plan)
    return grouped.routed(computation, x_TxD, pool, multiplier_TxK, plan, backend)


def routed_linear(
    x_TxD: jax.Array,
    kernel_NxDxE: jax.Array,
    bias_NxE: jax.Array,
    multiplier_TxK: jax.Array,
    plan: Plan,
    backend: str,
) -> jax.Array:
    """Each token's sum of multiplier · (x · kernel[module] + bias[module]) over its choices, [T, E]."""
    pool = pooled((kernel_NxDxE, bias_NxE), backend, x_TxD.dtype)
    return routed(weighted_linear, x_TxD, pool, multiplier_TxK, plan, backend)[0]
