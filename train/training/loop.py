"""The training loop: every phase of a configuration, one after the other, resumed wherever it was left."""

import contextlib
from collections.abc import Callable
from pathlib import Path

import optax
from rich.console import Console

from mom_jax.fields import require
from train.checkpoints.locate import FOLDER, Found, last_step
from train.checkpoints.teacher import Teacher, teacher_of
from train.config import Config, Phase
from train.reporting import metrics
from train.reporting.services.wandb_log import WandbLog
from train.steps.optimizer import make_optimizer
from train.steps.train_step import jit_train_step
from train.training import processes
from train.training.context import Context
from train.training.ending import finish
from train.training.initial_state import initial_state
from train.training.keeping.damage import changed_log, missing_steps, set_damaged_aside
from train.training.numbers.refused import go_back, gone_back, stop, told_before
from train.training.numbers.watcher import Watcher
from train.training.phase import PhaseLoop
from train.training.preparation import make_ready, record_left_out
from train.training.profile import Profile, stop_profile
from train.training.run import claimed
from train.training.signs import SignWatch


def train(
    config: Config, *, profile: Profile | None = None, console: Console | None = None, debug_checks: bool = False
) -> int | None:
    """Trains all phases of `config` in its run's folder, from wherever an earlier call was interrupted.

    debug_checks: checks the values of every step, which costs time and ends the run where one is not sound.

    Returns None when all is done, or the number of the signal that stopped it; everything is saved then.
    Raises ConfigError for what cannot be, NumbersError where a loss or a gradient is no number and the run is to stop,
    SavingFailedError where checkpoints cannot be written any more.
    """
    first = processes.is_first()
    console = console or Console(stderr=True, quiet=not first)
    processes.check_agreement(config)
    with processes.together():
        config, mesh, prepared = make_ready(config, console)
        if profile is not None:
            steps = sum(phase.steps for phase in config.phases)
            require(profile.last <= steps, "profile", f"{profile.first}:{profile.last}", f"the run has {steps} steps")
    run = Path(config.run).expanduser()
    guard: Callable[[], None] = lambda: None  # noqa: E731
    with contextlib.ExitStack() as stack:
        with processes.together():
            if first:
                guard = stack.enter_context(claimed(config)).check
                prepared.tokenizer.save(run)
                for line in set_damaged_aside(config):
                    console.print(line, markup=False, highlight=False, soft_wrap=True)
        with processes.Stop() as stop, metrics.MetricsLog(run, write=first) as log:
            context = Context(config, prepared, log, console, stop, profile, mesh, debug_checks, guard)
            finished = _rewind(context)
            if first:
                stack.enter_context(WandbLog(config, log, context.offsets, context.notify))
                record_left_out(context)
            for line in context.data.describe():
                context.notify(f"training data: {line}")
            for phase in config.phases:
                if phase.name in finished:
                    context.notify(f"{phase.name}: finished before")
                    continue
                try:
                    _run_phase(context, phase)
                finally:
                    stop_profile()
                if stop.signal is not None:
                    return stop.signal
        if first:
            from train.reporting.page import write_report  # and matplotlib, which nothing needs before

            guard()
            context.notify(f"report: {write_report(run)}")
        processes.wait_for_all("end of the run")
    return None


def _rewind(context: Context) -> set[str]:
    """Cuts the log back to the last checkpoint, so that every step that follows is there once; returns the names of the
    phases that are finished, down to their last word."""
    for phase in reversed(context.config.phases):  # the furthest counts: earlier checkpoints may have been removed
        latest = last_step(context.run / FOLDER / phase.name)
        if latest is not None:
            break
    changed: list[str] = []
    if latest is not None:  # all processes read it, as orbax wants
        changed = changed_log(context.run, Found(context.run, context.run / FOLDER / phase.name, latest).meta())
    names = [row.name for row in context.config.phases]
    left_out = context.log.truncate(names, phase.name, latest or 0, offset=context.offsets[phase.name])
    changed += [f"{line}; it is left out" for line in left_out]
    # A phase begins when those before it are finished, whatever has become of their records since.
    done: set[str | None] = set() if latest is None else set(names[: names.index(phase.name)])
    if processes.is_first():  # it has cut the file, of which the others may still read more
        file = context.run / metrics.FILE
        records = metrics.read(file) if file.exists() else []
        for line in [*changed, *missing_steps(context.config, records, phase.name, latest or 0)]:
            context.notify(line)
        done |= {record.get("phase") for record in records if record.get("kind") == "final"}
    known = processes.of_first([name in done for name in names])
    return {name for name, is_done in zip(names, known, strict=True) if is_done}


def _run_phase(context: Context, phase: Phase) -> None:
    """Trains one phase to its end, or until a signal comes."""
    model, config = context.config.model_of(phase.name), context.config
    optimizer, teacher = make_optimizer(phase.optim, phase.steps), _teacher(context, phase)
    step_function = jit_train_step(
        *(model, optimizer, phase.optim.accumulation, config.seed, context.mesh),
        gather=config.mesh.gather,
        watch=config.watch,
        debug_checks=context.debug_checks,
        teaching=None if teacher is None else teacher.teaching,
    )
    while _goes_back(context, phase, optimizer, step_function, teacher):
        pass


def _teacher(context: Context, phase: Phase) -> Teacher | None:
    """The teacher of a phase, which stays the same however often training goes back."""
    if phase.distill is None:
        return None
    checkpoints = context.checkpoints(phase)
    try:
        fingerprint = context.prepared.tokenizer.fingerprint
        teacher = teacher_of(context.config, phase, checkpoints, fingerprint, context.mesh)
    finally:
        checkpoints.close()
    if teacher is not None:
        context.notify(f"{phase.name}: {teacher.message}")
    return teacher


def _from_elsewhere(phase: Phase) -> bool:
    """Whether a phase begins with another run's parameters, or is taught by its model."""
    return phase.init_from not in ("scratch", "previous") or phase.distill not in (None, "previous")


def _goes_back(
    context: Context,
    phase: Phase,
    optimizer: optax.GradientTransformation,
    step_function: Callable,
    teacher: Teacher | None,
) -> bool:
    """Trains on from the last checkpoint; whether training went back to an earlier one, and is to go on from there."""
    checkpoints = context.checkpoints(phase)
    try:
        fingerprint = context.prepared.tokenizer.fingerprint
        start = initial_state(context.config, phase, optimizer, checkpoints, fingerprint, context.mesh)
        start = gone_back(context, phase, start)
        first = int(start.state.step)
        for message in (*start.messages, told_before(context.run, phase.name, first)):
            if message is not None:
                context.notify(f"{phase.name}: {message}")
        watcher = Watcher(context.config.watch, context.mesh, first, start.remembered)
        with SignWatch(context.config, phase, context.log, context.offsets[phase.name]) as signs:
            loop = PhaseLoop(context, phase, checkpoints, step_function, signs, watcher, teacher)
            if checkpoints.latest() is None and (first > 0 or _from_elsewhere(phase)):
                # From `resume`, or a folder in which there may be something else tomorrow: from here on the run stands
                # by itself.
                loop.save(start.state, first, start.examples_seen, None)
            signs.begin(first, context.notify)
            state = loop.train(start.state, start.examples_seen)
            stopping = context.stop.signal is not None
            loop.saver.settle(state, stopping=stopping)
            if loop.refused is not None:
                if loop.refused.trouble.policy == "rewind":
                    go_back(context, phase, loop.saver, loop.refused, watcher.known)
                    return True
                loop.save_before(state)
                loop.saver.settle(state, stopping=stopping)
                raise stop(context, phase, loop.saver, loop.refused)
            if int(state.step) == phase.steps and not stopping:
                finish(context, phase, state, signs, loop.saver)
    finally:
        checkpoints.close()
    return False
