"""Fine-tuning: the train step of pretraining over a few epochs of labelled examples. Nothing of its state is saved."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from mom_jax import sharding
from mom_jax.config import ModelConfig
from mom_jax.fields import ConfigError
from mom_jax.model import Head, parameters
from train.config import OptimConfig
from train.reporting.progress import Progress
from train.steps.evaluation_step import head_step
from train.steps.optimizer import with_schedule
from train.steps.state import TrainState, abstract_state, init_state
from train.steps.train_step import StepReport, train_step
from train.tasks.batches import Example, by_length, make_batch, training_batches
from train.tasks.settings import FineTuneConfig


@dataclasses.dataclass(frozen=True)
class FineTuned:
    """params: after the last step. steps: how many. losses: the mean loss of each epoch."""

    params: dict[Any, Any]
    steps: int
    losses: list[float]


def linear_schedule(peak: jax.Array | float, warmup: jax.Array | int, steps: jax.Array | int) -> optax.Schedule:
    """From peak / warmup linearly to the peak, and from there linearly to 0 after `steps` steps."""

    def schedule(step: Any) -> Any:
        rising = (step + 1) / jnp.maximum(warmup, 1)
        falling = (steps - step) / jnp.maximum(steps - warmup, 1)
        return peak * jnp.minimum(rising, falling)

    return schedule


@functools.lru_cache(maxsize=16)
def compiled(config: ModelConfig, optim: OptimConfig, mesh: Mesh) -> tuple[Any, Any]:
    """(params -> the first state, (state, batch, seed, peak, warm-up, steps) -> (state, report)).

    Seed and schedule are inputs of the compiled step, and `optim`'s own rate has no say, so that all seeds and all
    tasks with a head of the same size share one program for each length of a batch. The state is donated; the
    parameters that it began with are not.
    """
    optimizer = with_schedule(optim, linear_schedule(1.0, 0, 1))
    placed = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(config, optimizer, mesh))

    def step(
        state: TrainState, batch: Any, seed: jax.Array, peak: jax.Array, warmup: jax.Array, steps: jax.Array
    ) -> tuple[TrainState, StepReport]:
        optimizer = with_schedule(optim, linear_schedule(peak, warmup, steps))
        bound = {"config": config, "optimizer": optimizer, "accumulation": optim.accumulation, "mesh": mesh}
        return train_step(state, batch, seed=seed, **bound)

    start = jax.jit(lambda params: init_state(params, optimizer), out_shardings=placed)
    return start, jax.jit(step, donate_argnums=0, out_shardings=(placed, sharding.replicated(mesh)))


def with_head(config: ModelConfig, params: dict[Any, Any], classes: int, seed: int) -> tuple[ModelConfig, dict]:
    """The model with a new classification head of `classes` outputs, everything else as it is."""
    head = parameters(Head(config.d_model, classes, rngs=nnx.Rngs(seed)))
    return dataclasses.replace(config, num_classes=classes), {**params, "head": head}


def finetune(
    config: ModelConfig,
    params: dict[Any, Any],
    examples: Sequence[Example],
    settings: FineTuneConfig,
    seed: int,
    mesh: Mesh,
    *,
    label: str,
    unit: str,
) -> FineTuned:
    """Fine-tunes a model. label: what it is, for the progress shown; unit: the name of the loss there.

    Raises ConfigError if the loss becomes infinite or no number.
    """
    # Batches have lengths that not every kernel takes.
    config = dataclasses.replace(config, attention_kernel="auto")
    start, step_function = compiled(config, dataclasses.replace(settings.optim, learning_rate=1.0), mesh)
    per_epoch = math.ceil(len(examples) / settings.batch_size)
    steps = per_epoch * settings.epochs
    warmup = math.ceil(settings.warmup * steps)
    given = [np.int32(seed), np.float32(settings.learning_rate), np.int32(warmup), np.int32(steps)]
    state: TrainState = start(params)
    losses: list[float] = []
    pending: StepReport | None = None
    with Progress(steps, label) as progress:

        def note(report: StepReport | None) -> None:
            if report is None:
                return
            losses.append(float(report.losses.loss))
            if not math.isfinite(losses[-1]):
                why = f"the loss of step {len(losses)} is {losses[-1]}; lower it"
                raise ConfigError(f"learning_rate={settings.learning_rate!r}: {label}: {why}")
            progress.update(len(losses), **{unit: losses[-1]})

        for rows in training_batches(examples, settings.batch_size, settings.length, settings.epochs, seed):
            batch = {name: sharding.place_rows(array, mesh) for name, array in rows.items()}
            state, report = step_function(state, batch, *given)
            # The step is under way; meanwhile the one before is looked at.
            note(pending)
            pending = report
        note(pending)
    means = [float(np.mean(losses[epoch : epoch + per_epoch])) for epoch in range(0, steps, per_epoch)]
    return FineTuned(state.params, steps, means)


def predict(
    config: ModelConfig,
    params: dict[Any, Any],
    examples: Sequence[Example],
    settings: FineTuneConfig,
    mesh: Mesh,
) -> np.ndarray:
    """What the head says of each example, float32 [N, num_classes]. Raises ConfigError if it says what is no number."""
    config = config.for_inference()
    outputs = np.zeros((len(examples), config.num_classes or 0), np.float32)
    for indices in by_length([len(example.tokens) for example in examples], settings.batch_size):
        some = [Example(examples[i].tokens) for i in indices]
        rows = make_batch(some, settings.batch_size, settings.length)
        batch = {name: sharding.place_rows(array, mesh) for name, array in rows.items()}
        outputs[indices] = np.asarray(head_step(params, batch, config=config, mesh=mesh))[: len(indices)]
    if not np.isfinite(outputs).all():
        why = "what the fine-tuned model says is no number; lower it"
        raise ConfigError(f"learning_rate={settings.learning_rate!r}: {why}")
    return outputs
