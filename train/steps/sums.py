"""The loss sums of a batch, by what it has labels for; of micro-batches they add up exactly."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from mom_jax.config import ModelConfig, Side
from mom_jax.evaluation import counted
from mom_jax.losses import IGNORE, LossSums, cross_entropy, next_token
from mom_jax.model import Output, with_parameters
from train.batch import Batch
from train.steps.teaching import Taught

# (parameters, a batch, its random key) -> the loss sums of this device's rows.
SumsOf = Callable[[dict[Any, Any], Batch, jax.Array | None], LossSums]


def language_model_sums(
    params: dict[Any, Any],
    batch: Batch,
    config: ModelConfig,
    *,
    key: jax.Array | None = None,
    step: jax.Array | int | None = None,
    prior: Mapping[Side, jax.Array] | None = None,
    exchange_key: jax.Array | None = None,
    debug_checks: bool = False,
    taught: Taught | None = None,
) -> LossSums:
    """The loss sums of a batch. prior: what a model's call adds to its routers' own. debug_checks: also counts what is
    wrong with the routing. taught: by whom."""
    mask, labels = counted(batch)
    model = with_parameters(config, params)
    output = model(
        batch["tokens"],
        mask=mask,
        segment_ids=batch.get("segment_ids"),
        positions=batch.get("positions"),
        key=key,
        step=step,
        prior=prior,
        exchange_key=exchange_key,
        capture=("faults",) if debug_checks else (),
    )
    if taught is None:
        nll, count = next_token(output, labels)
        return LossSums(nll, count, output.routing, output.captured)
    objective, nll, kl, count = taught.next_token(output, batch, labels)
    return LossSums(nll, count, output.routing, output.captured, objective, kl)


def head_outputs(
    params: dict[Any, Any],
    batch: Batch,
    config: ModelConfig,
    *,
    key: jax.Array | None = None,
    step: jax.Array | int | None = None,
    debug_checks: bool = False,
) -> tuple[jax.Array, Output]:
    """(the head's logits for the last real token of each row, float32 [B, num_classes]; the model's output)."""
    mask = batch["mask"].astype(bool)
    model = with_parameters(config, params)
    capture = ("faults",) if debug_checks else ()
    output = model(batch["tokens"], mask=mask, key=key, step=step, capture=capture)
    # Padding may lie on either side.
    last = mask.shape[1] - 1 - jnp.argmax(mask[:, ::-1], axis=1)
    return model.classify(output.hidden, last), output


def classification_sums(
    params: dict[Any, Any],
    batch: Batch,
    config: ModelConfig,
    *,
    key: jax.Array | None = None,
    step: jax.Array | int | None = None,
    debug_checks: bool = False,
) -> LossSums:
    """The loss sums of a batch of labelled rows: -log p of `classes`, nats, or squared errors against `targets`, with a
    head of one output. count: the rows that are not all padding."""
    outputs, output = head_outputs(params, batch, config, key=key, step=step, debug_checks=debug_checks)
    rows = batch["mask"].astype(bool).any(1)
    if "classes" in batch:
        nll, count = cross_entropy(outputs, jnp.where(rows, batch["classes"], IGNORE))
        return LossSums(nll, count, output.routing, output.captured)
    errors = jnp.where(rows, jnp.square(outputs[:, 0] - batch["targets"]), 0.0)
    return LossSums(errors.sum(), rows.sum().astype(jnp.float32), output.routing, output.captured)


def batch_sums(
    params: dict[Any, Any],
    batch: Batch,
    config: ModelConfig,
    *,
    key: jax.Array | None,
    step: jax.Array,
    debug_checks: bool = False,
    taught: Taught | None = None,
) -> LossSums:
    """The loss sums of what the batch has labels for. taught: by whom, where these are the tokens themselves."""
    options: dict[str, Any] = {"key": key, "step": step, "debug_checks": debug_checks}
    if {"classes", "targets"} & set(batch):
        return classification_sums(params, batch, config, **options)
    return language_model_sums(params, batch, config, **options, taught=taught)


def accumulated_sums(
    sums_of: SumsOf, params: dict[Any, Any], batch: Batch, key: jax.Array | None, accumulation: int
) -> LossSums:
    """The batch's sums, taken over `accumulation` micro-batches one after the other.

    The sums add up exactly, and the losses are made of the added sums: so the gradient of the balance loss, a product
    of means over the whole batch, is right too. Averaging micro-batches' losses or gradients would not do.
    """
    if accumulation == 1:
        return sums_of(params, batch, key)

    @jax.checkpoint
    def micro(inputs: tuple) -> LossSums:
        return sums_of(params, *inputs)

    sums = jax.lax.map(micro, micro_batches(batch, accumulation, key))
    return jax.tree.map(lambda x: x.sum(0), sums)


def needs_whole_batch(config: ModelConfig) -> bool:
    """Whether a micro-batch's gradient depends on the others: where the balance loss is one of the whole batch."""
    return bool(config.routed_sides) and config.balance.over == "batch"


def micro_batches(batch: Batch, accumulation: int, key: jax.Array | None) -> tuple[Batch, jax.Array | None]:
    """The micro-batches on a leading axis, and a key for each."""
    keys = None if key is None else jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(accumulation))
    return jax.tree.map(lambda x: x.reshape(accumulation, -1, *x.shape[1:]), batch), keys


def label_count(batch: Batch) -> jax.Array:
    """How many labels of a batch count, float32: `LossSums.count` before any model has run."""
    if {"classes", "targets"} & set(batch):
        return batch["mask"].astype(bool).any(1).sum().astype(jnp.float32)
    return (counted(batch)[1][:, 1:] != IGNORE).sum().astype(jnp.float32)
