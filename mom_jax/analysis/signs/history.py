"""A phase's records, read one after the other, as the figures of each judgement; of steps a bounded number is kept."""

import collections
import dataclasses
import math
from typing import Any

from mom_jax.analysis.signs import figures
from mom_jax.analysis.signs.figures import Figures, router_value
from mom_jax.analysis.signs.thresholds import SignsConfig
from mom_jax.config import SIDES, ModelConfig, Side

# The share of a phase's steps after which choices should be stable.
CHURN_FROM = 0.75
# Train steps that are looked back on at most.
LONGEST = 1000


@dataclasses.dataclass(frozen=True)
class Point:
    """The figures of one judgement, after `step` steps: by side, and None for those of the whole model."""

    step: int
    figures: dict[Side | None, Figures]


class History:
    """The points of one phase, made of the log's records in their order.

    An evaluation ends a point where enough steps lie behind it, together with the analysis of the same step. The end of
    a phase is a point of its own.

    sequences: in a batch. steps: of the whole phase.
    """

    def __init__(self, model: ModelConfig, limits: SignsConfig, *, sequences: int, steps: int) -> None:
        self.points: list[Point] = []
        self._model, self._limits, self._sequences, self._steps = model, limits, sequences, steps
        self._first: int | None = None
        self._lowest = math.inf
        self._train: collections.deque[dict[str, Any]] = collections.deque(maxlen=max(LONGEST, limits.window))
        self._validation: dict[str, Any] | None = None
        self._analyses: list[dict[str, Any]] = []
        self._usage: dict[Side, Any] = {}

    def add(self, record: dict[str, Any]) -> None:
        """The next record of the phase; of kinds that say nothing here, too."""
        kind = record.get("kind", "train")
        if self._validation is not None and record["step"] > self._validation["step"]:
            self.close()
        if kind == "train":
            if self._first is None:
                self._first = record["step"] - 1
            if self._lowest == math.inf and record.get("loss") is not None:
                self._lowest = record["loss"]  # before the phase's first update
            self._train.append(record)
        elif kind == "validation":
            self._validation = record
            for side in SIDES:
                self._usage[side] = router_value(record, side, "usage") or self._usage.get(side)
        elif kind == "analysis":
            self._analyses.append(record)
        elif kind == "final" and record.get("exchanged"):
            self.close()
            found = figures.of_exchange(record["exchanged"])
            self._append(record["step"], {None: found})

    def close(self) -> None:
        """Ends the point of the evaluation before, if there is one: all of its step's records have come."""
        validation, self._validation = self._validation, None
        if validation is None or len(self._train) < self._limits.window:
            return
        losses = [record.get("loss") for record in self._train]
        found: dict[Side | None, Figures] = {None: figures.of_losses(losses, self._sequences)}
        found[None]["loss_rise"] = found[None]["loss"] - self._lowest
        self._lowest = min(self._lowest, found[None]["loss"])
        if self._model.routed_sides:
            found[None] |= figures.of_balance(list(self._train), self._model.balance.weight)
        for side in SIDES:
            found[side] = self._of_side(side, validation)
        self._append(validation["step"], found)
        self._train.clear()
        self._analyses.clear()

    def _of_side(self, side: Side, validation: dict[str, Any]) -> Figures:
        found: Figures = {}
        if usage := router_value(validation, side, "usage"):
            found |= figures.of_usage(usage, self._model, side)
        if side in self._model.routed_sides:
            found |= figures.of_routers(list(self._train), side)
        chance = figures.chance_of_change(usage) if (usage := self._usage.get(side)) else None
        for record in self._analyses:
            found |= figures.of_analysis(record, side, chance)
        if validation["step"] < CHURN_FROM * self._steps:
            found.pop("churn", None)  # choices move while routers learn the most
        return found

    def _append(self, step: int, found: dict[Side | None, Figures]) -> None:
        if step - (self._first or 0) >= self._limits.warmup:
            self.points.append(Point(step, found))
