"""The steps of one phase."""

import contextlib
import dataclasses
import time
from typing import Any

import jax

from mom_jax.analysis import routing
from train.analysis.watch import Watch
from train.checkpoints.manager import Checkpoints, Meta
from train.checkpoints.teacher import Teacher
from train.config import Phase
from train.reporting.progress import Progress
from train.reporting.throughput import utilisation
from train.steps.debug_checks import check_report
from train.steps.optimizer import make_schedule
from train.steps.state import TrainState
from train.steps.train_step import StepReport
from train.training import processes
from train.training.context import Context
from train.training.keeping.saving import Saver
from train.training.prefetch import DevicePrefetch
from train.training.profile import profile_step
from train.training.signs import SignWatch


@dataclasses.dataclass(frozen=True)
class _Pending:
    """A step that is under way. waited: seconds that all reading of data took so far."""

    step: int
    report: StepReport
    examples_seen: int
    waited: float


class PhaseLoop:
    """The steps of one phase."""

    def __init__(
        self,
        context: Context,
        phase: Phase,
        checkpoints: Checkpoints,
        step_function: Any,
        signs: SignWatch,
        teacher: Teacher | None = None,
    ):
        self.teacher = teacher
        self.context, self.phase, self.step_function = context, phase, step_function
        self.saver = Saver(checkpoints, context.log, context.notify)
        self.signs = signs
        self.config = context.config
        self.model = self.config.model_of(phase.name)
        self.schedule = make_schedule(phase.optim, phase.steps)
        self.watch = Watch(self.config, phase, context.prepared, context.mesh)
        self.waited = 0.0  # for data, until the step before was done, seconds
        self.clock: float | None = None  # when the step before was done; None where that says nothing of a step's time

    def train(self, state: TrainState, examples_seen: int) -> TrainState:
        """From `state` to the phase's last step, or to the step after which a signal came."""
        first, last, data = int(state.step) + 1, self.phase.steps, self.config.data
        batches = self.context.data.batches(
            examples_seen=examples_seen, process_index=jax.process_index(), process_count=jax.process_count()
        )
        quiet = not processes.is_first()
        placed = DevicePrefetch(batches, self.context.mesh)
        pending: _Pending | None = None
        with contextlib.closing(batches), Progress(last, self.phase.name, start=first - 1, quiet=quiet) as progress:
            self.saver.notify = progress.print
            for step in range(first, last + 1):
                profile_step(self.context.profile, self._offset + step, self.context.run, state)
                inputs = [next(placed), *([] if self.teacher is None else [self.teacher.params])]
                state, report = self.step_function(state, *inputs)
                examples_seen += data.batch_size
                # The step is under way; meanwhile the one before is written down.
                self._log(pending, progress)
                if self.context.debug_checks:
                    check_report(report, f"phase {self.phase.name}, step {step}")
                pending = _Pending(step, report, examples_seen, placed.waited)
                stopping = self.context.stop.wanted(self._offset + step)
                evaluating = step % self.config.evaluate_every == 0 or step == last
                saving = evaluating or stopping or step % self.config.checkpoint.every == 0 or self.saver.due()
                if saving or self.watch.wanted(step):
                    self._log(pending, progress)
                    pending = None
                    if self.watch.wanted(step):
                        self.context.log.write(self.watch.record(state.params, step), offset=self._offset)
                    loss = self._evaluate(state, step, progress) if evaluating else None
                    if evaluating:
                        self.signs.judge(step, progress.print)
                    if saving:
                        self.save(state, step, examples_seen, loss)
                    self.clock = None
                if stopping:
                    break
        self.saver.notify = self.context.notify
        return state

    def _log(self, pending: _Pending | None, progress: Progress) -> None:
        if pending is None:
            return
        step, report = pending.step, jax.device_get(pending.report)
        now = time.perf_counter()
        seconds = None if self.clock is None else now - self.clock
        self.clock = now
        waited, self.waited = pending.waited - self.waited, pending.waited
        routers = routing.summary(report.routing, self.model)
        for side, norm in report.router_norms.items():
            routers[side] |= {"grad_norm": float(norm), "update": float(report.router_updates[side])}
        data = self.config.data
        tokens_per_s = None if seconds is None else data.batch_size * data.length / seconds
        mfu = None
        if tokens_per_s is not None:
            mfu = utilisation(self.model, data.length, tokens_per_s, self.context.peak, routers)
        losses = report.losses
        record = {
            "kind": "train",
            "phase": self.phase.name,
            "step": step,
            "loss": losses.loss,
            "total": losses.total,
            **({} if losses.distill is None else {"distill": losses.distill}),
            "balance": losses.balance,
            "z_loss": losses.z,
            **({"capacity_loss": losses.capacity} if self.model.has_capacity else {}),
            "grad_norm": report.grad_norm,
            "learning_rate": self.schedule(step - 1),
            "tokens_per_s": tokens_per_s,
            "mfu": mfu,
            "examples_seen": pending.examples_seen,
            "epoch": max(self.context.data.epochs(pending.examples_seen).values()),
            "seconds": seconds,
            # Part of a wait may lie before the step that it was for.
            "data_wait": None if seconds is None else min(1.0, waited / seconds),
        }
        self.context.log.write(record | ({"routers": routers} if routers else {}), offset=self._offset)
        progress.update(step, loss=float(losses.loss), tokens_per_s=tokens_per_s, mfu=mfu)

    @property
    def _offset(self) -> int:
        return self.context.offsets[self.phase.name]

    def _evaluate(self, state: TrainState, step: int, progress: Progress) -> float:
        evaluation = self.context.validate(self.phase, state, self.config.data.validation_batches)
        record = {"kind": "validation", "phase": self.phase.name, "step": step, **evaluation.record()}
        self.context.log.write(record, offset=self._offset)
        progress.print(f"{self.phase.name} step {step}: validation loss {evaluation.loss:.4f} nats/token")
        return evaluation.loss

    def save(self, state: TrainState, step: int, examples_seen: int, loss: float | None) -> None:
        fingerprint = self.context.prepared.tokenizer.fingerprint
        teacher = None if self.teacher is None else self.teacher.name
        self.saver.save(state, Meta(self.config, self.phase.name, step, examples_seen, fingerprint, teacher), loss)
