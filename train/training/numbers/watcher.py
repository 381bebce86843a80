"""The watch over a phase's numbers on the host: what each step is judged by, and what became of it.

All processes see the same reports, so all come to the same.
"""

import dataclasses
import math
import statistics
from typing import Any

import numpy as np
from jax.sharding import Mesh

from train.numbers import Remembered, WatchConfig, describe
from train.steps.numbers.guard import APPLIED, HELD, NOT_FINITE, Guard, Verdict, make_guard, replicate
from train.steps.train_step import StepReport

Record = dict[str, Any]
Limits = tuple[float | None, ...]


@dataclasses.dataclass(frozen=True)
class Trouble:
    """A step that was refused or is a spike. policy: what is done about it (`log`, `skip`, `rewind` or `stop`).
    reason: what its numbers are. remembered: what the watch knew before the step."""

    step: int
    fault: str
    policy: str
    reason: str
    loss: float
    grad_norm: float
    remembered: Remembered

    def record(self, after: Remembered) -> Record:
        """For the metrics log, with the counts after the step."""
        return {
            "kind": "watch",
            "step": self.step,
            "fault": self.fault,
            "policy": self.policy,
            "reason": self.reason,
            "loss": self.loss,
            "grad_norm": self.grad_norm,
            "skipped": after.skipped,
            "rewinds": after.rewinds,
            "in_a_row": after.in_a_row,
        }


class Watcher:
    """What is known of a phase's numbers.

    The limits of a step are made of the reports up to the step before the last, whether they were read late, as while
    training runs, or at once, as before a checkpoint: so a run that goes on from one does the same.
    """

    def __init__(self, watch: WatchConfig, mesh: Mesh, step: int = 0, known: Remembered | None = None) -> None:
        known = known or Remembered()
        self.watch, self.mesh, self.known = watch, mesh, known
        self._window: list[tuple[float, float]] = list(known.window)
        self._limits: dict[int, Limits] = {step + 1: known.limits[0], step + 2: known.limits[1]}
        self._guard = make_guard((math.inf, math.inf), known.in_a_row, known.rewound_from, mesh)
        self._placed: Limits = (None, None)

    def guard(self, step: int) -> Guard:
        """What `step` is to be judged by."""
        limits = self._limits[step] if self.watch.spike != "off" else (None, None)
        if limits != self._placed:
            values = [math.inf if limit is None else limit for limit in limits]
            self._guard = dataclasses.replace(self._guard, limits=replicate(np.array(values, np.float32), self.mesh))
            self._placed = limits
        return self._guard

    def dispatched(self, verdict: Verdict) -> None:
        """The verdict of the step that was started last; nobody waits for it."""
        self._guard = dataclasses.replace(self._guard, last=verdict)

    def remembered(self, step: int) -> Remembered:
        """What is known after `step`, all steps up to which have been seen."""
        limits = (self._limits[step + 1], self._limits[step + 2])
        return dataclasses.replace(self.known, window=tuple(self._window), limits=limits)

    def see(self, step: int, report: StepReport) -> Trouble | None:
        """The report of `step`, on the host; the trouble with it, if there is any."""
        verdict = report.verdict
        assert verdict is not None
        outcome = int(verdict.outcome)
        assert outcome != HELD, "a step behind one that training waits for"
        loss, norm = float(report.losses.loss), float(report.grad_norm)
        before = self.remembered(step - 1) if outcome != APPLIED else self.known
        policy = self._policy(outcome, bool(verdict.go), int(verdict.in_a_row))
        self.known = dataclasses.replace(
            self.known,
            in_a_row=int(verdict.in_a_row),
            skipped=self.known.skipped + (policy == "skip"),
        )
        if self.watch.spike != "off" and policy in (None, "log"):
            self._window = [*self._window, (loss, norm)][-self.watch.window :]
        self._limits = {at: limits for at, limits in self._limits.items() if at >= step} | {step + 2: self._median()}
        if policy is None:
            return None
        if outcome == NOT_FINITE:
            total = {"total": float(report.losses.total)} if math.isfinite(loss) else {}
            reason = describe(loss=loss, **total, grad_norm=norm) or "a parameter would not be finite after the update"
        else:
            reason = self._spike(before.limits[0], loss, norm)
        fault = "not finite" if outcome == NOT_FINITE else "spike"
        return Trouble(step, fault, policy, reason, loss, norm, before)

    def _policy(self, outcome: int, go: bool, in_a_row: int) -> str | None:
        if outcome == APPLIED:
            return None
        policy = self.watch.non_finite if outcome == NOT_FINITE else self.watch.spike
        return "stop" if not go and in_a_row > self.watch.patience else policy

    def _median(self) -> Limits:
        """The limits that follow from the last steps."""
        if len(self._window) < self.watch.window:
            return None, None
        medians = [statistics.median(values) for values in zip(*self._window, strict=True)]
        factors = self.watch.loss_factor, self.watch.gradient_factor
        # In float32, as the step compares them.
        limits = [float(np.float32(median * factor)) for median, factor in zip(medians, factors, strict=True)]
        return tuple(limit if 0 < limit < math.inf else None for limit in limits)

    def _spike(self, limits: Limits, loss: float, norm: float) -> str:
        """What is far above its median."""
        said = []
        names = ("the loss", "the gradient's norm")
        factors = self.watch.loss_factor, self.watch.gradient_factor
        for name, value, limit, factor in zip(names, (loss, norm), limits, factors, strict=True):
            if limit is not None and value > limit:
                said.append(
                    f"{name} is {value:.4g}, {value * factor / limit:.3g} times the median of {limit / factor:.4g}"
                )
        return "; ".join(said)
