"""Evaluation steps: pure functions of parameters and a batch, without dropout."""

import functools
from typing import Any

import jax
from jax.sharding import Mesh

from mom_jax import sharding
from mom_jax.config import ModelConfig
from mom_jax.evaluation import for_evaluation
from mom_jax.losses import LossSums
from train.batch import Batch
from train.steps.placement import BATCH, WHOLE
from train.steps.state import param_specs
from train.steps.sums import head_outputs, language_model_sums


@functools.partial(jax.jit, static_argnames=("config", "mesh"))
def evaluation_step(
    params: dict[Any, Any],
    batch: Batch,
    step: jax.Array,
    exchange_key: jax.Array | None = None,
    *,
    config: ModelConfig,
    mesh: Mesh,
) -> LossSums:
    """The loss sums of a batch without dropout; with `exchange_key` the choices are dealt to other tokens.

    Routers that want noise in evaluation draw it from a fixed key.
    """
    config, key = for_evaluation(config)

    def sums(params: dict[Any, Any], batch: Batch, step: jax.Array, exchange_key: jax.Array | None) -> LossSums:
        own = language_model_sums(params, batch, config, key=key, step=step, exchange_key=exchange_key)
        return sharding.total(own)

    in_specs = (param_specs(config, mesh), BATCH, WHOLE, WHOLE)
    return sharding.on_devices(sums, mesh, in_specs=in_specs, out_specs=WHOLE)(params, batch, step, exchange_key)


@functools.partial(jax.jit, static_argnames=("config", "mesh"))
def head_step(params: dict[Any, Any], batch: Batch, *, config: ModelConfig, mesh: Mesh) -> jax.Array:
    """`head_outputs` of a batch, as `evaluation_step` runs the model."""
    config, key = for_evaluation(config)

    def outputs(params: dict[Any, Any], batch: Batch) -> jax.Array:
        return head_outputs(params, batch, config, key=key)[0]

    return sharding.on_devices(outputs, mesh, in_specs=(param_specs(config, mesh), BATCH), out_specs=BATCH)(
        params, batch
    )
