"""The train step and the evaluation step: pure functions of a state and a batch, the same for every phase."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mom_jax.config import ModelConfig
from mom_jax.losses import IGNORE, Losses, LossSums, finish, next_token
from mom_jax.model import with_parameters
from mom_jax.routing import Routing

Batch = Mapping[str, Any]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """step: optimizer steps taken in this phase. params: nested dictionaries of float32 arrays."""

    step: jax.Array
    params: dict[Any, Any]
    opt_state: optax.OptState


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StepReport:
    """losses: of the whole batch. grad_norm: before clipping. count: labels. routing: sums over the batch."""

    losses: Losses
    grad_norm: jax.Array
    count: jax.Array
    routing: Routing


def init_state(params: dict[Any, Any], optimizer: optax.GradientTransformation) -> TrainState:
    """A state before its first step."""
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))


def language_model_sums(
    params: dict[Any, Any],
    batch: Batch,
    config: ModelConfig,
    *,
    key: jax.Array | None = None,
    step: jax.Array | int | None = None,
    exchange_key: jax.Array | None = None,
) -> LossSums:
    """The loss sums of a batch: `tokens` [B, L], and where not all count `mask` [B, L] and `labels` [B, L]."""
    mask, labels = batch.get("mask"), batch.get("labels", batch["tokens"])
    model = with_parameters(config, params)
    output = model(batch["tokens"], mask=mask, key=key, step=step, exchange_key=exchange_key)
    if mask is not None:
        labels = jnp.where(mask.astype(bool), labels, IGNORE)
    nll, count = next_token(output, labels)
    return LossSums(nll, count, output.routing)


def accumulated_sums(
    params: dict[Any, Any], batch: Batch, config: ModelConfig, accumulation: int, key: jax.Array | None, step: jax.Array
) -> LossSums:
    """The batch's sums, taken over `accumulation` micro-batches one after the other.

    The sums add up exactly, and the losses are made of the added sums: so the gradient of the balance loss, a product
    of means over the whole batch, is right too. Averaging micro-batches' losses or gradients would not do.
    """
    if accumulation == 1:
        return language_model_sums(params, batch, config, key=key, step=step)

    @jax.checkpoint
    def micro(inputs: tuple) -> LossSums:
        part, index = inputs
        micro_key = None if key is None else jax.random.fold_in(key, index)
        return language_model_sums(params, part, config, key=micro_key, step=step)

    parts = jax.tree.map(lambda x: x.reshape(accumulation, -1, *x.shape[1:]), batch)
    sums = jax.lax.map(micro, (parts, jnp.arange(accumulation)))
    return jax.tree.map(lambda x: x.sum(0), sums)


def is_random(config: ModelConfig) -> bool:
    """Whether training draws random numbers."""
    routed = config.num_chunks and "routed" in (config.kind("attention"), config.kind("ffn"))
    return config.dropout.active or bool(routed and config.router.kind == "gru_random")


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    config: ModelConfig,
    optimizer: optax.GradientTransformation,
    accumulation: int,
    seed: int,
) -> tuple[TrainState, StepReport]:
    """One optimizer step."""
    # Keys are a function of the step: nothing random needs to be saved, and a resumed run draws the same numbers.
    key = jax.random.fold_in(jax.random.key(seed), state.step) if is_random(config) else None

    def loss(params: dict[Any, Any]) -> tuple[jax.Array, tuple[Losses, LossSums]]:
        sums = accumulated_sums(params, batch, config, accumulation, key, state.step)
        losses = finish(sums, config)
        return losses.total, (losses, sums)

    gradients, (losses, sums) = jax.grad(loss, has_aux=True)(state.params)
    with jax.numpy_dtype_promotion("standard"):  # optax mixes its integer counter with floats
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    report = StepReport(losses, optax.tree.norm(gradients), sums.count, sums.routing)
    return TrainState(state.step + 1, params, opt_state), report


def jit_train_step(config: ModelConfig, optimizer: optax.GradientTransformation, accumulation: int, seed: int) -> Any:
    """`train_step` compiled for a phase: (state, batch) -> (state, report). The state is donated."""
    bound = functools.partial(train_step, config=config, optimizer=optimizer, accumulation=accumulation, seed=seed)
    return jax.jit(bound, donate_argnums=0)


@functools.partial(jax.jit, static_argnames="config")
def evaluation_step(
    params: dict[Any, Any],
    batch: Batch,
    step: jax.Array,
    exchange_key: jax.Array | None = None,
    *,
    config: ModelConfig,
) -> LossSums:
    """The loss sums of a batch without dropout; with `exchange_key` the choices are dealt to other tokens.

    Routers that want noise in evaluation draw it from a fixed key.
    """
    noisy = is_random(config) and config.router.kind == "gru_random" and config.router.noise_in_evaluation
    config = dataclasses.replace(config, dropout=type(config.dropout)())
    key = jax.random.key(0) if noisy else None
    return language_model_sums(params, batch, config, key=key, step=step, exchange_key=exchange_key)
