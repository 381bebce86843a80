"""The signs of failure: which figure must lie beyond which limit, and what is said then."""

import dataclasses
from collections.abc import Iterable
from typing import Any, Literal

from mom_jax.analysis.signs.figures import Figures
from mom_jax.analysis.signs.history import History, Point
from mom_jax.analysis.signs.thresholds import SignsConfig
from mom_jax.config import SIDES, ModelConfig, Side

# In the order in which they are said.
Sign = Literal["learning", "collapse", "skip", "step", "token", "churn", "similarity", "balance", "loss"]


@dataclasses.dataclass(frozen=True)
class Finding:
    """A sign of failure, of one side or of the whole model. text: what is wrong and what to do, one line."""

    sign: Sign
    side: Side | None
    text: str


@dataclasses.dataclass(frozen=True)
class Rule:
    """figure: what is judged, by the name that its limit has too. least: whether the limit is a least. text: of a
    finding, with places for `value`, `limit`, `side` and the figures. patient: whether one judgement is not enough."""

    sign: Sign
    figure: str
    least: bool
    text: str
    patient: bool = True

    def broken(self, figures: Figures, limits: SignsConfig) -> bool:
        value, limit = figures[self.figure], getattr(limits, self.figure)
        return value < limit if self.least else value > limit


RULES = (
    Rule(
        "learning",
        "router_gradient",
        True,
        "the {side} routers do not learn: their gradient is {value:.1g} of the whole gradient's norm (least: "
        "{limit:g}). Check router.weights (renormalised weights with top_k=1 give none), that top_k is less than the "
        "classes that a prior leaves, and that balance.weight is not 0 with weights that are constant.",
    ),
    Rule(
        "learning",
        "router_movement",
        True,
        "the {side} routers do not learn: in a step their parameters change by {value:.2g} of the learning rate "
        "(least: {limit:g}). Raise optim.router_multiplier, and see that neither optim.freeze nor optim.multipliers "
        "stops them.",
    ),
    Rule(
        "collapse",
        "module_spread",
        True,
        "the {side} choices collapse onto few modules: {modules_in_use:.1f} of {modules} are in use. Raise "
        "balance.weight, lower optim.router_multiplier, or raise router.temperature.",
    ),
    Rule(
        "skip",
        "skip_share",
        False,
        "SKIP takes over the {side} side: {skip:.0%} of the tokens take it at a step. Raise balance.weight, lower "
        "{side}.skip_preference, or set skip=False; where so much is to be skipped, raise signs.skip_share.",
    ),
    Rule(
        "step",
        "step_share",
        True,
        "the {side} choices do not depend on the step: it explains {value:.2%} of them (least: {limit:.2%}), so that "
        "the steps repeat one another. Take balance.kind='global' and a lower balance.weight, start with a "
        "preference ({side}.preference) that anneals, take a router with a state (router.kind='gru'), or train longer.",
    ),
    Rule(
        "token",
        "token_choice",
        True,
        "the {side} choices do not depend on the token: at a step nearly all tokens choose the same (variety "
        "{value:.1%}, least: {limit:.1%}). Lower {side}.preference or let it anneal, raise router.temperature or "
        "balance.weight.",
    ),
    Rule(
        "token",
        "token_share",
        True,
        "the {side} choices do not depend on the token: its identity explains {value:.1%} of them (least: "
        "{limit:.1%}). Raise optim.router_multiplier or router.dim; with router.kind='gru_random' the noise may "
        "decide: take 'gru'.",
    ),
    Rule(
        "token",
        "exchange_effect",
        True,
        "the choices do not depend on the token in any way that matters: dealt to other tokens they change the "
        "held-out loss by {value:+.4f} nats/token (least: {limit:.4f}). Raise optim.router_multiplier, lower "
        "balance.weight, or train longer.",
        patient=False,
    ),
    Rule(
        "churn",
        "churn",
        False,
        "the {side} choices are unstable: on the same text {value:.0%} of what chance would change has changed since "
        "the analysis before. Lower optim.router_multiplier or the learning rate, or raise router.temperature.",
    ),
    Rule(
        "similarity",
        "weight_similarity",
        False,
        "the {side} modules are alike: the mean cosine of their weights is {value:.3f} (most: {limit:.3f}). Start "
        "them from different layers (init_from a vanilla phase) or from scratch, and train phase 1 longer.",
    ),
    Rule(
        "similarity",
        "output_similarity",
        False,
        "the {side} modules are alike: the mean similarity (CKA) of their outputs is {value:.3f} (most: "
        "{limit:.3f}). Train phase 1 longer, take fewer modules, or start them from different layers.",
    ),
    Rule(
        "balance",
        "balance_share",
        False,
        "the balance loss dominates: it is {value:.0%} of the total loss (most: {limit:.0%}). Lower balance.weight; "
        "the paper's is 0.01.",
    ),
    Rule(
        "loss",
        "loss_noise",
        False,
        "the loss is unstable: from step to step it varies by {value:.2f} nats/token times the root of the batch's "
        "sequences (most: {limit:.2f}). Lower the learning rate, warm up longer, or take larger batches.",
    ),
    Rule(
        "loss",
        "loss_rise",
        False,
        "the loss rises: it lies {value:.2f} nats/token above the lowest before (most: {limit:.2f}). Lower the "
        "learning rate, warm up longer, or go back to an earlier checkpoint.",
    ),
)

# Signs of a side that follow from others of that side, and would say the same once more.
FOLLOWS: dict[Sign, set[Sign]] = {"step": {"collapse", "skip", "learning"}, "token": {"collapse", "skip"}}


def before_training(model: ModelConfig, limits: SignsConfig) -> list[Finding]:
    """What is known from the configuration alone."""
    if not limits.enabled or model.router.all_modules:
        return []

    def trapped(side: Side) -> bool:
        return model.weights(side) == "renormalised" and model.side_top_k(side) == 1

    text = (
        "the routers learn nothing from the language model's loss: with top_k=1 and router.weights='renormalised' "
        "every choice weighs 1, so that only the balance loss teaches them. Take router.weights='probability' (or "
        "'auto'), or top_k=2."
    )
    return [Finding("learning", side, text) for side in model.routed_sides if trapped(side)]


def judge(points: list[Point], model: ModelConfig, limits: SignsConfig) -> list[Finding]:
    """What the last of a phase's points shows, each sign of a side once."""
    if not limits.enabled or not points:
        return []
    found: dict[tuple[Side | None, Sign], Finding] = {}
    for side in (*SIDES, None):
        series = [point.figures.get(side, {}) for point in points]
        for rule in RULES:
            if rule.figure not in series[-1] or (side, rule.sign) in found:
                continue
            known = [figures for figures in series if rule.figure in figures]
            needed = limits.patience if rule.patient else 1
            if len(known) >= needed and all(rule.broken(figures, limits) for figures in known[-needed:]):
                found[side, rule.sign] = Finding(rule.sign, side, _text(rule, series[-1], side, model, limits))
    return [
        finding
        for (side, sign), finding in found.items()
        if not any((side, reason) in found for reason in FOLLOWS.get(sign, ()))
    ]


def findings(
    records: Iterable[dict[str, Any]], model: ModelConfig, limits: SignsConfig, *, sequences: int, steps: int
) -> list[tuple[int, Finding]]:
    """(step, finding) of each sign that a phase's records show, each sign of a side once, where it shows first.

    sequences: in a batch. steps: of the whole phase.
    """
    history = History(model, limits, sequences=sequences, steps=steps)
    found = [(0, finding) for finding in before_training(model, limits)]
    for record in [*records, None]:
        known = len(history.points)
        if record is None:
            history.close()
        else:
            history.add(record)
        for end in range(known + 1, len(history.points) + 1):
            points = history.points[:end]
            found += [(points[-1].step, finding) for finding in judge(points, model, limits)]
    first: dict[tuple[Sign, Side | None], tuple[int, Finding]] = {}
    for step, finding in found:
        first.setdefault((finding.sign, finding.side), (step, finding))
    return list(first.values())


def _text(rule: Rule, figures: Figures, side: Side | None, model: ModelConfig, limits: SignsConfig) -> str:
    name = {"attention": "attention", "ffn": "ffn", None: ""}[side]
    modules = model.modules(side) if side else 0
    values = {**figures, "value": figures[rule.figure], "limit": getattr(limits, rule.figure)}
    return rule.text.format(**values, side=name, modules=modules).replace("%", " %")
