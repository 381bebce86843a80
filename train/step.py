"""The train step and the evaluation step: pure functions of a state and a batch, the same for every phase."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mom_jax import sharding
from mom_jax.config import ModelConfig
from mom_jax.losses import IGNORE, Losses, LossSums, cross_entropy, finish, next_token
from mom_jax.model import MoM, parameters, with_parameters
from mom_jax.routing import Routing

# What a step reads, arrays [B, L] by name. `tokens`: int32 ids. All others may be absent:
# `mask`: true for the real tokens; the others are padding. `labels`: int32, instead of `tokens`; -100 does not count.
# `segment_ids`: int32, 1, 2, ... for the documents that share a row, which are computed as if each were alone; 0 is
# padding. `positions`: int32, from 0 on in every segment; without it positions count from the row's beginning.
# With `classes`, int32 [B], or `targets`, float32 [B], and a mask the loss is the classification head's, of each row's
# last real token; rows that are all padding do not count.
Batch = Mapping[str, Any]
Rows = dict[str, np.ndarray]  # a batch that is still on the host
BATCH, WHOLE = PartitionSpec(sharding.AXES), PartitionSpec()


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


def abstract_model(config: ModelConfig) -> MoM:
    """A model of shapes and types; nothing is computed."""
    return nnx.eval_shape(lambda: MoM(config, rngs=nnx.Rngs(0)))


def param_specs(config: ModelConfig, mesh: Mesh) -> dict[Any, Any]:
    """The PartitionSpec of every parameter."""
    return sharding.parameter_specs(abstract_model(config), mesh)


def abstract_params(config: ModelConfig, mesh: Mesh | None = None) -> dict[Any, Any]:
    """Shapes, types and, with a mesh, shardings of a model's parameters."""
    model = abstract_model(config)
    params = jax.eval_shape(parameters, model)
    if mesh is None:
        return params
    return jax.tree.map(lambda leaf, spec: _placed(leaf, mesh, spec), params, sharding.parameter_specs(model, mesh))


def abstract_state(config: ModelConfig, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Shapes, types and shardings of a phase's state: moments lie where their parameters do."""
    params = abstract_params(config, mesh)
    state = jax.eval_shape(functools.partial(init_state, optimizer=optimizer), params)
    specs = {path: leaf.sharding.spec for path, leaf in jax.tree_util.tree_leaves_with_path(params)}

    def place(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        own = next((spec for name, spec in specs.items() if path[-len(name) :] == name), WHOLE)
        return _placed(leaf, mesh, own)

    return jax.tree_util.tree_map_with_path(place, state)


def place_rows(rows: np.ndarray, mesh: Mesh) -> jax.Array:
    """A batch that every process has whole, on the devices of all."""
    return jax.make_array_from_callback(rows.shape, sharding.batch_sharding(mesh), lambda part: rows[part])


def place_share(rows: np.ndarray, mesh: Mesh) -> jax.Array:
    """A batch of which every process has its share, on the devices of all."""
    return jax.make_array_from_process_local_data(sharding.batch_sharding(mesh), rows)


def whole_params(params: dict[Any, Any], mesh: Mesh) -> dict[Any, Any]:
    """The parameters, whole on every device."""
    return jax.jit(lambda x: x, out_shardings=sharding.replicated(mesh))(params)


def _placed(leaf: jax.ShapeDtypeStruct, mesh: Mesh, spec: PartitionSpec) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))


def _on_devices(function: Callable, mesh: Mesh, *, in_specs: Any, out_specs: Any) -> Callable:
    """`function` of what each device has, on all devices of the mesh."""
    if mesh.size == 1:
        return function
    # The check would ask Pallas kernels along which axes their results vary, which they do not say.
    return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def init_state(params: dict[Any, Any], optimizer: optax.GradientTransformation) -> TrainState:
    """A state before its first step."""
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))


def counted(batch: Batch) -> tuple[jax.Array | None, jax.Array]:
    """(the real tokens, bool [B, L] or None for all; the labels [B, L], IGNORE where they do not count).

    A label counts where its token and the one before it, which predicts it, are real and of one segment: the first
    token of a document is nobody's label.
    """
    mask, segments, labels = batch.get("mask"), batch.get("segment_ids"), batch.get("labels", batch["tokens"])
    if mask is None and segments is None:
        return None, labels
    real = jnp.ones(labels.shape, bool) if mask is None else mask.astype(bool)
    if segments is None:
        segments = jnp.ones_like(labels)
    segments = jnp.where(real, segments, 0)
    before = jnp.pad(segments[:, :-1], ((0, 0), (1, 0)))
    return segments > 0, jnp.where((segments > 0) & (segments == before), labels, IGNORE)


def language_model_sums(
    params: dict[Any, Any],
    batch: Batch,
    config: ModelConfig,
    *,
    key: jax.Array | None = None,
    step: jax.Array | int | None = None,
    exchange_key: jax.Array | None = None,
) -> LossSums:
    """The loss sums of a batch."""
    mask, labels = counted(batch)
    model = with_parameters(config, params)
    output = model(
        batch["tokens"],
        mask=mask,
        segment_ids=batch.get("segment_ids"),
        positions=batch.get("positions"),
        key=key,
        step=step,
        exchange_key=exchange_key,
    )
    nll, count = next_token(output, labels)
    return LossSums(nll, count, output.routing)


def head_outputs(
    params: dict[Any, Any],
    batch: Batch,
    config: ModelConfig,
    *,
    key: jax.Array | None = None,
    step: jax.Array | int | None = None,
) -> tuple[jax.Array, Routing]:
    """(what the classification head says of each row's last real token, float32 [B, num_classes]; the routing)."""
    mask = batch["mask"].astype(bool)
    model = with_parameters(config, params)
    output = model(batch["tokens"], mask=mask, key=key, step=step)
    # Padding may lie on either side.
    last = mask.shape[1] - 1 - jnp.argmax(mask[:, ::-1], axis=1)
    return model.classify(output.hidden, last), output.routing


def classification_sums(
    params: dict[Any, Any],
    batch: Batch,
    config: ModelConfig,
    *,
    key: jax.Array | None = None,
    step: jax.Array | int | None = None,
) -> LossSums:
    """The loss sums of a batch of labelled rows: -log p of `classes`, nats, or squared errors against `targets`, with a
    head of one output. count: the rows that are not all padding."""
    outputs, routing = head_outputs(params, batch, config, key=key, step=step)
    rows = batch["mask"].astype(bool).any(1)
    if "classes" in batch:
        nll, count = cross_entropy(outputs, jnp.where(rows, batch["classes"], IGNORE))
        return LossSums(nll, count, routing)
    errors = jnp.where(rows, jnp.square(outputs[:, 0] - batch["targets"]), 0.0)
    return LossSums(errors.sum(), rows.sum().astype(jnp.float32), routing)


def batch_sums(
    params: dict[Any, Any], batch: Batch, config: ModelConfig, *, key: jax.Array | None, step: jax.Array
) -> LossSums:
    """The loss sums of what the batch has labels for."""
    sums = classification_sums if {"classes", "targets"} & set(batch) else language_model_sums
    return sums(params, batch, config, key=key, step=step)


def accumulated_sums(
    params: dict[Any, Any], batch: Batch, config: ModelConfig, accumulation: int, key: jax.Array | None, step: jax.Array
) -> LossSums:
    """The batch's sums, taken over `accumulation` micro-batches one after the other.

    The sums add up exactly, and the losses are made of the added sums: so the gradient of the balance loss, a product
    of means over the whole batch, is right too. Averaging micro-batches' losses or gradients would not do.
    """
    if accumulation == 1:
        return batch_sums(params, batch, config, key=key, step=step)

    @jax.checkpoint
    def micro(inputs: tuple) -> LossSums:
        part, index = inputs
        micro_key = None if key is None else jax.random.fold_in(key, index)
        return batch_sums(params, part, config, key=micro_key, step=step)

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
    seed: int | jax.Array,
    mesh: Mesh,
) -> tuple[TrainState, StepReport]:
    """One optimizer step."""
    # Keys are a function of the step: nothing random needs to be saved, and a resumed run draws the same numbers.
    key = jax.random.fold_in(jax.random.key(seed), state.step) if is_random(config) else None
    specs = param_specs(config, mesh)

    def gradient(params: dict[Any, Any], batch: Batch, key: jax.Array | None, step: jax.Array) -> tuple:
        def loss(params: dict[Any, Any]) -> tuple[jax.Array, tuple[Losses, LossSums]]:
            sums = sharding.total(accumulated_sums(params, batch, config, accumulation, key, step))
            losses = finish(sums, config)
            # What is differentiated is the sum over all devices: each has its share of the one loss.
            return losses.total / sharding.size(*sharding.AXES), (losses, sums)

        gradients, aux = jax.grad(loss, has_aux=True)(params)
        return sharding.total_gradient(gradients, specs), aux

    everywhere = _on_devices(gradient, mesh, in_specs=(specs, BATCH, WHOLE, WHOLE), out_specs=(specs, WHOLE))
    gradients, (losses, sums) = everywhere(state.params, batch, key, state.step)
    with jax.numpy_dtype_promotion("standard"):  # optax mixes its integer counter with floats
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    report = StepReport(losses, optax.tree.norm(gradients), sums.count, sums.routing)
    return TrainState(state.step + 1, params, opt_state), report


def jit_train_step(
    config: ModelConfig, optimizer: optax.GradientTransformation, accumulation: int, seed: int, mesh: Mesh
) -> Any:
    """`train_step` compiled for a phase: (state, batch) -> (state, report). The state is donated."""
    bound = functools.partial(
        train_step, config=config, optimizer=optimizer, accumulation=accumulation, seed=seed, mesh=mesh
    )
    placed = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(config, optimizer, mesh))
    # Pinned: XLA may choose other shardings for the new state, and the next step would be compiled anew.
    return jax.jit(bound, donate_argnums=0, out_shardings=(placed, sharding.replicated(mesh)))


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
    return _on_devices(sums, mesh, in_specs=in_specs, out_specs=WHOLE)(params, batch, step, exchange_key)


@functools.partial(jax.jit, static_argnames=("config", "mesh"))
def head_step(params: dict[Any, Any], batch: Batch, *, config: ModelConfig, mesh: Mesh) -> jax.Array:
    """`head_outputs` of a batch, as `evaluation_step` runs the model."""
    config, key = for_evaluation(config)

    def outputs(params: dict[Any, Any], batch: Batch) -> jax.Array:
        return head_outputs(params, batch, config, key=key)[0]

    return _on_devices(outputs, mesh, in_specs=(param_specs(config, mesh), BATCH), out_specs=BATCH)(params, batch)


def for_evaluation(config: ModelConfig) -> tuple[ModelConfig, jax.Array | None]:
    """(the model without dropout, the fixed key of routers that want noise in evaluation)."""
    noisy = is_random(config) and config.router.kind == "gru_random" and config.router.noise_in_evaluation
    config = dataclasses.replace(config, dropout=type(config.dropout)())
    return config, jax.random.key(0) if noisy else None
