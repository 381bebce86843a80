"""Speed and memory of each arm's train step, measured side by side."""

import dataclasses
import math
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from mom_jax.fields import ConfigError
from mom_jax.sharding import make_mesh
from train.checkpoints.locate import FOLDER, find, last_step, source_of
from train.checkpoints.teacher import teacher_of
from train.config import Config, Phase
from train.data.pipeline import TrainingData
from train.data.prepared import prepare
from train.steps import timing
from train.steps.compiled import check_devices, compiled_memory, teaching_of, trace_step
from train.steps.numbers.guard import make_guard
from train.steps.optimizer import make_optimizer
from train.steps.placement import place_share
from train.steps.state import TrainState, abstract_state, init_state
from train.steps.teaching import Taught
from train.study.plan import Plan, Run
from train.study.records import trained_in
from train.study.speeds import Speed, write_measure
from train.training.initial_state import fresh_params


@dataclasses.dataclass(frozen=True)
class _Step:
    """An arm's compiled step with its state. peak, temporaries: bytes on a device. trained: whether the parameters are
    those of a finished run."""

    call: Callable[[], Any]
    tokens: int
    peak: int
    temporaries: int
    trained: bool


def measure(plan: Plan, arms: Collection[str], rounds: int, say: Callable[[str], None]) -> None:
    """Times a step of each of the arms and their baselines in turn, `rounds` times over, and writes `measure.json`.

    The state is that at the end of the last phase, with the parameters of a finished run where there is one: how evenly
    tokens are routed, and how much is skipped, changes a step's time. All arms' states are in memory at once.
    """
    steps: dict[str, _Step] = {}
    baselines = plan.study.baselines
    names = [name for name in baselines if name in {*arms, *(baselines[arm] for arm in arms)}]
    for name in names:
        say(f"{name}: compiling")
        try:
            steps[name] = _prepared(plan, name, say)
        except ConfigError as error:
            raise ConfigError(f"arm {name!r}: {error}") from None
    calls = {name: step.call for name, step in steps.items()}
    timing.warm_up(calls)
    say(f"{rounds} rounds of {len(calls)} steps")
    seconds = timing.interleaved(calls, rounds)
    found = {n: Speed(seconds[n], step.tokens, step.peak, step.temporaries, step.trained) for n, step in steps.items()}
    write_measure(plan, found)


def _prepared(plan: Plan, arm: str, say: Callable[[str], None]) -> _Step:
    runs = [run for run in plan.runs if run.arm == arm]
    folders = {run.seed: trained_in(plan, run) for run in runs}
    finished = [run for run in runs if _is_finished(run, folders[run.seed])]
    run = (finished or runs)[0]
    phase = run.config.phases[-1]
    mesh = make_mesh(run.config.mesh)
    prepared = prepare(run.config.data, say)
    config = run.config.with_vocabulary(prepared.tokenizer.vocab_size)
    check_devices(config, mesh)
    teacher = _teacher(run, config, folders[run.seed], prepared.tokenizer.fingerprint, mesh)
    theirs = None if teacher is None else teacher.teaching.model
    compiled = trace_step(config, phase, mesh, theirs).lower().compile()
    memory = compiled_memory(compiled, mesh)
    model = config.model_of(phase.name)
    checkpoint = find(folders[run.seed], field="run") if finished else None
    params = fresh_params(model, run.seed, mesh) if checkpoint is None else checkpoint.params(model, mesh)
    batches = TrainingData(prepared, config.data).batches(
        examples_seen=0, process_index=jax.process_index(), process_count=jax.process_count()
    )
    try:
        batch = {name: place_share(rows, mesh) for name, rows in next(batches).items()}
    finally:
        batches.close()
    states, guard = [_state(config, phase, params, mesh)], make_guard((math.inf, math.inf), 0, 0, mesh)
    taught = () if teacher is None else (teacher.params,)

    def call() -> None:
        # The state is donated: each step takes the one before.
        state, report = compiled(states.pop(), batch, guard, *taught)
        jax.block_until_ready(report)
        states.append(state)

    tokens = config.data.batch_size * config.data.length
    return _Step(call, tokens, memory.peak, memory.temporaries, bool(finished))


def _teacher(run: Run, config: Config, folder: Path, tokenizer: str, mesh: Mesh) -> Taught | None:
    """What the arm's last phase is taught by: a checkpoint, or new parameters where the arm itself trains the teacher
    and has not yet. folder: where the run lies."""
    phase, model = config.phases[-1], None
    if phase.distill is None:
        return None
    config = dataclasses.replace(config, run=str(folder))
    trained = source_of(config, phase, phase.distill)
    if phase.distill == "previous":
        model = config.model_of(config.phases[-2].name)
    elif run.start is not None and phase.distill == run.start.run:
        start, [row] = run.start.with_vocabulary(config.model.vocab_size), run.start.phases
        trained, model = f"{start.run}/{FOLDER}/{row.name}", start.model_of(row.name)
    if model is None or last_step(Path(trained).expanduser()) is not None:
        found = teacher_of(config, phase, None, tokenizer, mesh)
        return None if found is None else Taught(found.teaching, found.params)
    teaching = teaching_of(config, phase, model)
    return None if teaching is None else Taught(teaching, fresh_params(teaching.model, run.seed, mesh))


def _is_finished(run: Run, folder: Path) -> bool:
    phase = run.config.phases[-1]
    return last_step(folder / FOLDER / phase.name) == phase.steps


def _state(config: Config, phase: Phase, params: dict[Any, Any], mesh: Mesh) -> TrainState:
    optimizer = make_optimizer(phase.optim, phase.steps)
    like = abstract_state(config.model_of(phase.name), optimizer, mesh)

    def start(params: dict[Any, Any]) -> TrainState:
        # Where a preference is annealed it has gone by now.
        return dataclasses.replace(init_state(params, optimizer), step=jnp.asarray(phase.steps - 1, jnp.int32))

    state: TrainState = jax.jit(start, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, like))(params)
    return state
