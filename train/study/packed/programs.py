"""What is compiled for a phase: its beginning, some training steps, an evaluation, over tokens on the device."""

import dataclasses
import os
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from mom_jax import sharding
from mom_jax.config import ModelConfig
from mom_jax.losses import LossSums
from mom_jax.model import MoM, parameters
from train.config import Config, OptimConfig, Phase
from train.steps.compiled import compiled_memory
from train.steps.evaluation_step import evaluation_step
from train.steps.optimizer import make_schedule, with_schedule
from train.steps.state import TrainState, abstract_params, abstract_state, init_state
from train.steps.train_step import train_step
from train.training.initial_state import taken_over

# Steps of one call, a loop on the device: a small model's step is over before Python has asked for the next one.
CALL = 10


@dataclasses.dataclass(frozen=True)
class Trained:
    """What of a phase its programs depend on; seeds, batches and learning rates are given to them.

    optim: without its schedule. source: the model that it starts from, None from scratch.
    """

    model: ModelConfig
    optim: OptimConfig
    source: ModelConfig | None


def trained(config: Config, phase: Phase, source: ModelConfig | None) -> Trained:
    """Phases in which only a schedule, or what a vanilla model has no use for, differs are the same."""
    model = config.model_of(phase.name)
    plain = {name: getattr(OptimConfig, name) for name in ("schedule", "warmup_steps", "decay_steps", "final_fraction")}
    optim = dataclasses.replace(phase.optim, learning_rate=1.0, **plain)
    return Trained(model.vanilla() if phase.model == "vanilla" else model, optim, source)


def rates(phase: Phase) -> jax.Array:
    """float32 [steps / CALL, CALL]: the learning rate of each step."""
    schedule = make_schedule(phase.optim, phase.steps)
    with jax.numpy_dtype_promotion("standard"):  # optax mixes its integer counter with floats
        found = jax.vmap(lambda step: jnp.asarray(schedule(step), jnp.float32))(jnp.arange(phase.steps))
    return found.reshape(-1, CALL)


@dataclasses.dataclass(frozen=True)
class Programs:
    """Of a phase, compiled.

    start: (the source's parameters, unless from scratch; seed) -> state. train: (state, tokens, rows [CALL, B], rates
    [CALL], seed) -> (state, losses [CALL]); the state is donated. evaluate: (parameters, tokens, rows [n, B], step) ->
    loss sums, of each batch. peak, temporaries: bytes of a training call on the device.
    """

    start: Any
    train: Any
    evaluate: Any
    peak: int
    temporaries: int


@dataclasses.dataclass(frozen=True)
class Shapes:
    """tokens: [rows, length] of the file. batch: B. evaluated: batches of one evaluating call."""

    tokens: tuple[int, int]
    batch: int
    evaluated: int


def compile_all(wanted: Iterable[Trained], shapes: Shapes, mesh: Mesh) -> dict[Trained, Programs | Exception]:
    """The programs of all, or why one cannot be compiled. Tracing is Python's work; XLA compiles several at a time."""
    shared: dict[Trained, list[Future]] = {}
    own: dict[Trained, list[Future] | Exception] = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for row in dict.fromkeys(wanted):
            # Models that differ in where they start from have the other programs in common.
            alike = dataclasses.replace(row, source=None)
            try:
                if alike not in shared:
                    traced = [traced_train(row, shapes, mesh), _traced_evaluate(row, shapes, mesh)]
                    shared[alike] = [pool.submit(one.lower().compile) for one in traced]
                own[row] = [pool.submit(_traced_start(row, mesh).lower().compile), *shared[alike]]
            except Exception as error:  # whatever a backend makes of what it cannot do
                own[row] = error
        return {row: _gathered(futures, mesh) for row, futures in own.items()}


def _gathered(futures: list[Future] | Exception, mesh: Mesh) -> Programs | Exception:
    if isinstance(futures, Exception):
        return futures
    try:
        start, train, evaluate = (future.result() for future in futures)
    except Exception as error:
        return error
    memory = compiled_memory(train, mesh)
    return Programs(start, train, evaluate, memory.peak, memory.temporaries)


def _optimizer(row: Trained, rate: jax.Array | float = 0.0) -> optax.GradientTransformation:
    return with_schedule(row.optim, lambda step: rate)


def _traced_start(row: Trained, mesh: Mesh) -> Any:
    """From scratch, or from the source's parameters, with new ones for what it lacks."""

    def start(*inputs: Any) -> TrainState:
        *source, seed = inputs
        params = parameters(MoM(row.model, rngs=nnx.Rngs(jax.random.key(seed))))
        if row.source is not None:
            params, _ = taken_over(row.source, source[0], row.model, params)
        return init_state(params, _optimizer(row))

    given = [] if row.source is None else [abstract_params(row.source, mesh)]
    return jax.jit(start, out_shardings=_placed(row, mesh)).trace(*given, _input((), mesh))


def traced_train(row: Trained, shapes: Shapes, mesh: Mesh) -> Any:
    """The training steps of a call, traced: nothing is allocated, and the mesh may be one that is not here."""

    def train(
        state: TrainState, tokens: jax.Array, rows: jax.Array, rates: jax.Array, seed: jax.Array
    ) -> tuple[TrainState, jax.Array]:
        def one(state: TrainState, given: tuple[jax.Array, jax.Array]) -> tuple[TrainState, jax.Array]:
            batch = {"tokens": tokens[given[0]].astype(jnp.int32)}
            optimizer = _optimizer(row, given[1])
            options: dict[str, Any] = {"accumulation": row.optim.accumulation, "seed": seed, "mesh": mesh}
            state, report = train_step(state, batch, config=row.model, optimizer=optimizer, **options)
            return state, report.losses.loss

        return jax.lax.scan(one, state, (rows, rates))

    step = jax.jit(train, donate_argnums=0, out_shardings=(_placed(row, mesh), sharding.replicated(mesh)))
    state = abstract_state(row.model, _optimizer(row), mesh)
    rows, rates = _input((CALL, shapes.batch), mesh), _input((CALL,), mesh, jnp.float32)
    return step.trace(state, _input(shapes.tokens, mesh, jnp.uint16), rows, rates, _input((), mesh))


def _traced_evaluate(row: Trained, shapes: Shapes, mesh: Mesh) -> Any:
    def evaluate(params: dict[Any, Any], tokens: jax.Array, rows: jax.Array, step: jax.Array) -> LossSums:
        def one(rows: jax.Array) -> LossSums:
            batch = {"tokens": tokens[rows].astype(jnp.int32)}
            sums: LossSums = evaluation_step(params, batch, step, config=row.model, mesh=mesh)
            return sums

        return jax.lax.map(one, rows)

    rows = _input((shapes.evaluated, shapes.batch), mesh)
    params, tokens = abstract_params(row.model, mesh), _input(shapes.tokens, mesh, jnp.uint16)
    return jax.jit(evaluate).trace(params, tokens, rows, _input((), mesh))


def _placed(row: Trained, mesh: Mesh) -> TrainState:
    placed: TrainState = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(row.model, _optimizer(row), mesh))
    return placed


def _input(shape: tuple[int, ...], mesh: Mesh, dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding.replicated(mesh))
