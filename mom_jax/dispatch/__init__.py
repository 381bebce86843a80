"""The routed computation: each token's sum over the modules that it chose, by backends for different platforms.

`make_plan` sorts a routing decision once; `routed` applies a module's computation (a `Body`) with stacked weights to
the rows of a plan. Backends differ in how they multiply rows grouped by module:

dense     every module for every row; the oracle of the others
blocked   a loop over blocks of rows of one module: pays for the chosen rows only, on any platform; best on CPUs
ragged    `jax.lax.ragged_dot`
megablox  JAX's Pallas kernel for TPUs; elsewhere interpreted, for tests
tokamax   the library of that name, with kernels for GPUs, where it is installed
capacity  one batched product with a fixed number of rows per module: drops what does not fit
switched  a branch per module, weights that are arrays of their own: decoding on CPUs; without gradients
"""

import importlib.util
from typing import Any

import jax

from mom_jax.config import ModelConfig
from mom_jax.dispatch import blocked, grouped, megablox, switched
from mom_jax.dispatch.body import Body, Linear, Pooled, linear, weighted_linear, with_sink
from mom_jax.dispatch.plan import Plan, capacity_plan, sort_plan
from mom_jax.dispatch.switched import is_unstacked
from mom_jax.fields import require
from mom_jax.platforms import platform

BACKENDS = ("blocked", *grouped.PRODUCTS)

__all__ = ["BACKENDS", "Body", "Linear", "Plan", "Pooled", "is_unstacked", "linear", "weighted_linear"]


def resolve(config: ModelConfig) -> str:
    """The backend of a configuration; `auto` goes by platform.

    `ragged_dot` multiplies every row by every module on a CPU, on a GPU, and for the gradient of the weights on a TPU.
    """
    if config.capacity_factor is not None:
        return "capacity"
    if config.dispatch != "auto":
        require(runs_here(config.dispatch), "dispatch", config.dispatch, "the package of that name is not installed")
        return config.dispatch
    gpu = "tokamax" if runs_here("tokamax") else "ragged"
    return {"cpu": "blocked", "tpu": "megablox"}.get(platform(), gpu)


def runs_here(backend: str) -> bool:
    """Whether what the backend needs is installed."""
    return backend != "tokamax" or importlib.util.find_spec("tokamax") is not None


def make_plan(index_TxK: jax.Array, num_modules: int, backend: str, capacity_factor: float | None = None) -> Plan:
    """Groups the choices `index` by module for a backend; an index of `num_modules` or more is a null.

    capacity_factor: room per module over an even share of all choices; `capacity` needs it, no other has it.
    """
    if backend == "capacity":
        assert capacity_factor is not None
        return capacity_plan(index_TxK, num_modules, capacity_factor)
    if backend == "switched":
        return switched.plan(index_TxK, num_modules)
    if backend == "blocked":
        return sort_plan(index_TxK, num_modules, blocked.unit(index_TxK.size, num_modules))
    return sort_plan(index_TxK, num_modules, multiple=megablox.TILE)


def pooled(weights: Any, backend: str) -> Pooled:
    """A pool's float32 weights [N, ...], made ready for uses by `routed`; each use returns them for the next.

    Products cast them to the dtype of the rows; their gradients are added up in float32.
    """
    if backend == "switched":
        return switched.unstack(weights)
    return with_sink(weights) if backend == "blocked" else Pooled(weights, None)


def routed(
    body: Body, x_TxD: jax.Array, pool: Pooled, multiplier_TxK: jax.Array, plan: Plan, backend: str
) -> tuple[jax.Array, Pooled]:
    """Each token's sum of `body` over the modules that it chose, [T, E], and the pool for its next use."""
    if backend == "switched":
        return switched.routed(body, x_TxD, pool, multiplier_TxK, plan)
    if backend == "blocked":
        return blocked.routed(body, x_TxD, pool, multiplier_TxK, plan)
    return grouped.routed(body, x_TxD, pool, multiplier_TxK, plan, backend)


def routed_linear(
    x_TxD: jax.Array,
    kernel_NxDxE: jax.Array,
    bias_NxE: jax.Array,
    multiplier_TxK: jax.Array,
    plan: Plan,
    backend: str,
) -> jax.Array:
    """Each token's sum of multiplier · (x · kernel[module] + bias[module]) over its choices, [T, E]."""
    pool = pooled((kernel_NxDxE, bias_NxE), backend)
    return routed(weighted_linear, x_TxD, pool, multiplier_TxK, plan, backend)[0]
