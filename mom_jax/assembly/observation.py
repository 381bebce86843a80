"""What a pass observes of its routing: statistics in any case, values that a user asked for, and the exchange test.

One `Observation` says what is wanted of a whole chunk; a `StepObserver` collects it in one step. Nothing of it changes
what is computed, but for an exchange, which is asked for to see what the routing knows about a token.
"""

from typing import Any, NamedTuple

import jax

from mom_jax.checks import not_finite, routing_faults
from mom_jax.config import ModelConfig, Side
from mom_jax.dispatch import ExchangePlan, Plan
from mom_jax.pool import dropped, further_rounds
from mom_jax.routers import Scores, Selection
from mom_jax.routing import Routing, SideStats, collect, exchange

CAPTURES = ("hidden", "routing", "faults")


class Observation(NamedTuple):
    """valid: [B, L] bool, the tokens that statistics count and that exchange among themselves. capture: any of
    `CAPTURES`. exchange_key: deals every step's choices to other tokens."""

    valid: jax.Array
    capture: tuple[str, ...] = ()
    exchange_key: jax.Array | None = None

    def of_chunk(self, index: int) -> "Observation":
        """The same for one of a model's chunks, with an exchange of its own."""
        key = self.exchange_key
        return self._replace(exchange_key=None if key is None else jax.random.fold_in(key, index))


class StepObserver:
    """Collects what is observed of one step.

    step: h, int32. exchange_key: this step's. captured, as far as it is wanted: `SIDE/scores`, `SIDE/index`,
    `SIDE/weight`, `SIDE/state` (all [B, L, ...]), `hidden` ([B, L, D]), and `faults/...`, int32, how often something
    was wrong (mom_jax/checks.py).
    """

    def __init__(self, config: ModelConfig, observation: Observation, step: jax.Array, exchange_key: jax.Array | None):
        self.config, self.observation, self.step, self.exchange_key = config, observation, step, exchange_key
        self.valid_T = observation.valid.reshape(-1)
        self.captured: dict[str, jax.Array] = {}
        self._statistics: dict[Side, SideStats] = {}

    @property
    def routing(self) -> Routing:
        """The statistics of the sides that have made their choices."""
        return Routing(self._statistics.get("attention"), self._statistics.get("ffn"))

    def exchanged(self, side: Side, selection: Selection) -> Selection:
        """The selection, or with `exchange_key` the same choices dealt to other tokens."""
        if self.exchange_key is None:
            return selection
        return exchange(selection, jax.random.fold_in(self.exchange_key, side == "ffn"), self.valid_T)

    def routed(
        self,
        side: Side,
        selection: Selection,
        scores: Scores,
        plan: Plan | ExchangePlan,
        state: Any,
    ) -> None:
        """A side has made its choices. state: its router's, any tree of arrays by token."""
        with jax.named_scope("statistics"):
            dropped_T = dropped(selection, plan, self.config, side)
            self._statistics[side] = collect(
                selection, scores, dropped_T, further_rounds(plan), self.step, self.valid_T, self.config, side
            )
        if "faults" in self.observation.capture:
            plans = [plan] if isinstance(plan, Plan) else [p for part in plan.parts for p in (part.home, part.first)]
            faults = routing_faults(scores.logits_TxC, scores.reported_TxC, *selection, plans, self.config, side)
            self.captured |= {f"faults/{side} {name}": count for name, count in faults.items()}
        if "routing" not in self.observation.capture:
            return
        values: dict[str, Any] = {
            "scores": scores.reported_TxC,
            "index": selection.index_TxK,
            "weight": selection.weight_TxK,
        }
        if state is not None:
            values["state"] = state
        shape = (*self.observation.valid.shape, -1)
        captured = jax.tree.map(lambda value: value.reshape(shape), values)
        self.captured |= {f"{side}/{name}": value for name, value in captured.items()}

    def hidden(self, x: jax.Array) -> None:
        """The residual stream after the step."""
        if "hidden" in self.observation.capture:
            self.captured["hidden"] = x
        if "faults" in self.observation.capture:
            self.captured["faults/hidden states are not finite"] = not_finite(x)
