"""The figures that signs of failure are judged by, from the records of a run's log. All are plain numbers."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from mom_jax.config import ModelConfig, Side

# By name; what cannot be known is missing.
Figures = dict[str, float]


def _entropy(shares: np.ndarray) -> np.ndarray:
    """Of distributions along the last axis, nats."""
    return -np.where(shares > 0, shares * np.log(np.maximum(shares, 1e-300)), 0.0).sum(-1)


def _scaled(value: float, low: float, high: float) -> float:
    """Where `value` lies between `low`, 0, and `high`, 1."""
    return float(np.clip((value - low) / (high - low), 0, 1))


@functools.cache
def allowed_classes(config: ModelConfig, side: Side) -> np.ndarray:
    """How many classes each step's prior leaves, [H]."""
    from mom_jax.routers import prior_table  # here: SignsConfig is read without JAX

    prior = prior_table(config, side)
    if prior is None:
        return np.full(config.num_steps, config.classes(side))
    return np.isfinite(np.asarray(prior)).sum(-1)


def of_usage(usage: Sequence[Sequence[float]], config: ModelConfig, side: Side) -> Figures:
    """usage: the share of each class among a step's choices, a row for each step through all chunks, as
    `routing.summary` has it."""
    shares = np.asarray(usage, np.float64).reshape(config.num_chunks, config.num_steps, -1)
    modules, choices, found = config.modules(side), config.choices(side), {}
    by_chunk = shares.mean(1)
    whole, within = _entropy(by_chunk).mean(), _entropy(shares).mean()
    if config.num_steps > 1 and whole > 1e-6:
        found["step_share"] = _scaled(float(whole - within), 0, float(whole))
    allowed = allowed_classes(config, side)
    if choices < allowed.min():
        spread = np.exp(_entropy(shares))
        found["token_choice"] = _scaled(float((spread - choices).mean()), 0, float((allowed - choices).mean()))
    real = by_chunk[:, :modules]
    if choices < modules:
        in_use = np.exp(_entropy(real / np.maximum(real.sum(-1, keepdims=True), 1e-12)))
        found["modules_in_use"] = float(in_use.mean())
        found["module_spread"] = _scaled(found["modules_in_use"], choices, modules)
    if config.skip and choices < allowed.min():
        # Of a token's K choices at a step at most one is SKIP.
        found["skip"] = float(shares[:, :, -1].mean() * choices)
        found["skip_share"] = _scaled(found["skip"], float((choices / allowed).mean()), 1)
    return found


def chance_of_change(usage: Sequence[Sequence[float]]) -> float:
    """How often two independent choices of the same step differ."""
    shares = np.asarray(usage, np.float64)
    return float(1 - np.square(shares).sum(-1).mean())


def of_losses(losses: Sequence[float | None], sequences: int) -> Figures:
    """losses: of successive steps, None where one was not finite; sequences: in a batch."""
    known = np.array([math.nan if loss is None else loss for loss in losses], np.float64)
    if not np.isfinite(known).all():
        return {"loss": math.inf, "loss_noise": math.inf}
    found = {"loss": float(known.mean())}
    if len(known) > 2:
        # Differences of neighbours: a trend adds next to nothing.
        found["loss_noise"] = float(np.std(np.diff(known)) / math.sqrt(2) * math.sqrt(sequences))
    return found


def of_balance(records: Sequence[dict[str, Any]], weight: float) -> Figures:
    """The weighted balance loss as a share of the total loss, the mean over train records."""
    shares = [weight * r["balance"] / r["total"] for r in records if r.get("balance") is not None and r.get("total")]
    return {"balance_share": float(np.mean(shares))} if shares else {}


def of_routers(records: Sequence[dict[str, Any]], side: Side) -> Figures:
    """How a side's routers learn, the median over train records."""
    found = {}
    for ours, theirs, scale in (
        ("router_gradient", "grad_norm", "grad_norm"),
        ("router_movement", "update", "learning_rate"),
    ):
        shares = [
            value / record[scale]
            for record in records
            if record.get(scale) and (value := router_value(record, side, theirs)) is not None
        ]
        if shares:
            found[ours] = float(np.median(shares))
    return found


def router_value(record: dict[str, Any], side: Side, key: str) -> Any:
    """One figure of one side's routers, None where it is missing."""
    return ((record.get("routers") or {}).get(side) or {}).get(key)


def of_analysis(record: dict[str, Any], side: Side, chance: float | None) -> Figures:
    """From a record of the kind `analysis`. chance: how often two independent choices of the side differ."""

    def part(name: str) -> Any:
        return (record.get(name) or {}).get(side)

    found: dict[str, float | None] = {}
    churn = part("churn")
    if churn is not None and chance:
        found["churn"] = churn / chance
    for ours, theirs in (("weight_similarity", "weights"), ("output_similarity", "outputs")):
        found[ours] = (part("similarity") or {}).get(theirs)
    dependence = part("dependence") or {}
    if dependence.get("entropy") and dependence.get("token") is not None:
        beyond = dependence["token"] - (dependence.get("token_baseline") or 0.0)
        found["token_share"] = beyond / dependence["entropy"]
    return {name: float(value) for name, value in found.items() if value is not None}


def of_exchange(exchanged: dict[str, list[float]]) -> Figures:
    """From the exchange test: by how much dealing the choices to other tokens raises the loss, nats per token."""
    pairs = [
        (a, b)
        for a, b in zip(exchanged["normal"], exchanged["exchanged"], strict=True)
        if a is not None and b is not None
    ]
    return {"exchange_effect": max(0.0, float(np.mean([b - a for a, b in pairs])))} if pairs else {}
