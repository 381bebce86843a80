"""The steps of one phase."""

import contextlib
import dataclasses
import math
import time
from typing import Any

import jax

from mom_jax.analysis import routing
from train.analysis.watch import Watch
from train.checkpoints.manager import Checkpoints, Meta
from train.checkpoints.teacher import Teacher
from train.config import Phase
from train.numbers import NumbersError, Remembered
from train.reporting.progress import Progress
from train.reporting.throughput import utilisation
from train.steps.debug_checks import check_report
from train.steps.optimizer import make_schedule
from train.steps.state import TrainState
from train.steps.train_step import StepReport
from train.training import processes
from train.training.context import Context
from train.training.keeping.saving import Saver
from train.training.numbers.refused import Refused
from train.training.numbers.watcher import Watcher
from train.training.prefetch import DevicePrefetch
from train.training.profile import profile_step
from train.training.signs import SignWatch


@dataclasses.dataclass(frozen=True)
class _Pending:
    """A step that is under way. waited: seconds that all reading of data took so far."""

    step: int
    report: StepReport
    batch: dict[str, jax.Array]
    examples_seen: int
    waited: float


class PhaseLoop:
    """The steps of one phase. refused: the step at which training ended before the last one, where its numbers made it
    end."""

    def __init__(
        self,
        context: Context,
        phase: Phase,
        checkpoints: Checkpoints,
        step_function: Any,
        signs: SignWatch,
        watcher: Watcher,
        teacher: Teacher | None = None,
    ):
        self.teacher = teacher
        self.context, self.phase, self.step_function = context, phase, step_function
        self.saver = Saver(checkpoints, context.log, context.notify, guard=context.guard)
        self.signs, self.watcher = signs, watcher
        self.refused: Refused | None = None
        self.config = context.config
        self.model = self.config.model_of(phase.name)
        self.schedule = make_schedule(phase.optim, phase.steps)
        self.watch = Watch(self.config, phase, context.prepared, context.mesh)
        self.waited = 0.0  # for data, until the step before was done, seconds
        self.clock: float | None = None  # when the step before was done; None where that says nothing of a step's time

    def train(self, state: TrainState, examples_seen: int) -> TrainState:
        """From `state` to the phase's last step, or to the step after which a signal came, or before which one was
        refused."""
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
                batch = next(placed)
                taught = () if self.teacher is None else (self.teacher.params,)
                state, report = self.step_function(state, batch, self.watcher.guard(step), *taught)
                self.watcher.dispatched(report.verdict)
                examples_seen += data.batch_size
                # The step is under way; meanwhile the one before is written down. Where that one was refused, this one
                # has left the state alone.
                if not self._log(pending, progress):
                    break
                if self.context.debug_checks:
                    check_report(report, f"phase {self.phase.name}, step {step}")
                pending = _Pending(step, report, batch, examples_seen, placed.waited)
                stopping = self.context.stop.wanted(self._offset + step)
                evaluating = step % self.config.evaluate_every == 0 or step == last
                saving = evaluating or stopping or step % self.config.checkpoint.every == 0 or self.saver.due()
                if saving or self.watch.wanted(step):
                    if not self._log(pending, progress):
                        break
                    pending = None
                    if self.watch.wanted(step):
                        self.context.log.write(self.watch.record(state.params, step), offset=self._offset)
                    loss = self._evaluate(state, step, progress) if evaluating else None
                    if evaluating:
                        self.signs.judge(step, progress.print)
                    if saving:
                        self.save(state, step, examples_seen, loss)
                    self._check_validation(loss, state, step)
                    self.clock = None
                if stopping:
                    break
        self.saver.notify = self.context.notify
        return state

    def _log(self, pending: _Pending | None, progress: Progress) -> bool:
        """Whether training goes on."""
        if pending is None:
            return True
        step, report = pending.step, jax.device_get(pending.report)
        updates = step - 1 - self.watcher.known.skipped  # which the schedule goes by
        trouble = self.watcher.see(step, report)
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
            "learning_rate": self.schedule(updates),
            "tokens_per_s": tokens_per_s,
            "mfu": mfu,
            "examples_seen": pending.examples_seen,
            "epoch": max(self.context.data.epochs(pending.examples_seen).values()),
            "seconds": seconds,
            # Part of a wait may lie before the step that it was for.
            "data_wait": None if seconds is None else min(1.0, waited / seconds),
        }
        self.context.log.write(record | ({"routers": routers} if routers else {}), offset=self._offset)
        known = self.watcher.known
        counts = {"skipped": known.skipped or None, "rewinds": known.rewinds or None}
        progress.update(step, loss=float(losses.loss), tokens_per_s=tokens_per_s, mfu=mfu, **counts)
        if trouble is None:
            return True
        self.context.log.write({"phase": self.phase.name, **trouble.record(known)}, offset=self._offset)
        if trouble.policy in ("log", "skip"):
            done = "; the update is skipped" if trouble.policy == "skip" else ""
            progress.print(f"{self.phase.name} step {step}: {trouble.reason}{done}")
            return True
        examples = pending.examples_seen - data.batch_size, pending.examples_seen
        self.refused = Refused(trouble, pending.batch, examples)
        return False

    @property
    def _offset(self) -> int:
        return self.context.offsets[self.phase.name]

    def _evaluate(self, state: TrainState, step: int, progress: Progress) -> float:
        evaluation = self.context.validate(self.phase, state, self.config.data.validation_batches)
        record = {"kind": "validation", "phase": self.phase.name, "step": step, **evaluation.record()}
        self.context.log.write(record, offset=self._offset)
        progress.print(f"{self.phase.name} step {step}: validation loss {evaluation.loss:.4f} nats/token")
        if not math.isfinite(evaluation.loss):
            policy = "stop" if self.config.watch.non_finite == "stop" else "log"
            self.context.log.write(
                {"kind": "watch", "phase": self.phase.name, "step": step, "fault": "not finite", "policy": policy}
                | {"reason": f"the validation loss is {evaluation.loss}"},
                offset=self._offset,
            )
        return evaluation.loss

    def _check_validation(self, loss: float | None, state: TrainState, step: int) -> None:
        """Raises NumbersError for a validation loss that is no number, where the configuration wants to stop then."""
        if loss is not None and not math.isfinite(loss) and self.config.watch.non_finite == "stop":
            self.saver.settle(state, stopping=self.context.stop.signal is not None)
            raise NumbersError(f"{self.phase.name} step {step}: the validation loss is {loss}; the state is saved")

    def save_before(self, state: TrainState) -> None:
        """Saves the state before the step that was refused, unless it is saved; no save is under way."""
        assert self.refused is not None
        trouble, step = self.refused.trouble, int(state.step)
        if self.saver.checkpoints.latest() != step:
            self.save(state, step, self.refused.examples[0], None, trouble.remembered)

    def save(
        self,
        state: TrainState,
        step: int,
        examples_seen: int,
        loss: float | None,
        remembered: Remembered | None = None,
    ) -> None:
        """remembered: what is known of the numbers after `step`, where later ones have been seen."""
        fingerprint = self.context.prepared.tokenizer.fingerprint
        teacher = None if self.teacher is None else self.teacher.name
        known = remembered or self.watcher.remembered(step)
        meta = Meta(self.config, self.phase.name, step, examples_seen, fingerprint, teacher, known)
        self.saver.save(state, meta, loss)
