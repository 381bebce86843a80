"""The training loop: every phase of a configuration, one after the other, resumed wherever it was left."""

import contextlib
from pathlib import Path

from rich.console import Console

from mom_jax.fields import require
from train.checkpoints.locate import FOLDER, last_step
from train.checkpoints.teacher import teacher_of
from train.config import Config, Phase
from train.reporting import metrics
from train.steps.optimizer import make_optimizer
from train.steps.train_step import jit_train_step
from train.training import processes
from train.training.context import Context
from train.training.ending import finish
from train.training.initial_state import initial_state
from train.training.keeping.damage import missing_steps, set_damaged_aside
from train.training.phase import PhaseLoop
from train.training.preparation import make_ready
from train.training.profile import Profile, stop_profile
from train.training.run import claimed
from train.training.signs import SignWatch


def train(
    config: Config, *, profile: Profile | None = None, console: Console | None = None, debug_checks: bool = False
) -> int | None:
    """Trains all phases of `config` in its run's folder, from wherever an earlier call was interrupted.

    debug_checks: checks the values of every step, which costs time and ends the run where one is not sound.

    Returns None when all is done, or the number of the signal that stopped it; everything is saved then.
    Raises ConfigError for what cannot be, SavingFailedError where checkpoints cannot be written any more.
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
    with contextlib.ExitStack() as stack:
        with processes.together():
            if first:
                stack.enter_context(claimed(config))
                prepared.tokenizer.save(run)
                for line in set_damaged_aside(config):
                    console.print(line, markup=False, highlight=False, soft_wrap=True)
        with processes.Stop() as stop, metrics.MetricsLog(run, write=first) as log:
            context = Context(config, prepared, log, console, stop, profile, mesh, debug_checks)
            finished = _rewind(context)
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
    names = [row.name for row in context.config.phases]
    context.log.truncate(names, phase.name, latest or 0, offset=context.offsets[phase.name])
    file = context.run / metrics.FILE
    records = metrics.read(file) if file.exists() else []
    for line in missing_steps(context.config, records, phase.name, latest or 0):
        context.notify(line)
    done = {record["phase"] for record in records if record.get("kind") == "final"}
    # One process cuts the file; what the others read of it may be older.
    known = processes.of_first([name in done for name in names])
    return {name for name, is_done in zip(names, known, strict=True) if is_done}


def _run_phase(context: Context, phase: Phase) -> None:
    """Trains one phase to its end, or until a signal comes."""
    checkpoints = context.checkpoints(phase)
    try:
        model = context.config.model_of(phase.name)
        optimizer = make_optimizer(phase.optim, phase.steps)
        fingerprint = context.prepared.tokenizer.fingerprint
        start = initial_state(context.config, phase, optimizer, checkpoints, fingerprint, context.mesh)
        for message in start.messages:
            context.notify(f"{phase.name}: {message}")
        teacher = teacher_of(context.config, phase, checkpoints, fingerprint, context.mesh)
        if teacher is not None:
            context.notify(f"{phase.name}: {teacher.message}")
        options = model, optimizer, phase.optim.accumulation, context.config.seed, context.mesh
        gather = context.config.mesh.gather
        teaching = None if teacher is None else teacher.teaching
        step_function = jit_train_step(*options, gather=gather, debug_checks=context.debug_checks, teaching=teaching)
        with SignWatch(context.config, phase, context.log, context.offsets[phase.name]) as signs:
            loop = PhaseLoop(context, phase, checkpoints, step_function, signs, teacher)
            if checkpoints.latest() is None and int(start.state.step) > 0:
                # From `resume`: from here on the run stands by itself.
                loop.save(start.state, int(start.state.step), start.examples_seen, None)
            signs.begin(int(start.state.step), context.notify)
            state = loop.train(start.state, start.examples_seen)
            loop.saver.settle(state, stopping=context.stop.signal is not None)
            if int(state.step) == phase.steps:
                finish(context, phase, state, signs, loop.saver)
    finally:
        checkpoints.close()
