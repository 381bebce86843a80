"""Two phases against one: MoM from a trained vanilla model, and from scratch with as many steps.

And how modules specialise meanwhile (docs/analysis.md).

Command: python -m train.study configs/studies/phases.py
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from configs.studies.setting import OURS_AT_ONCE, VANILLA, VANILLA_AT_ONCE, from_scratch, ours, paper, sizes
from mom_jax.config import BalanceConfig, ChoiceConfig
from train.config import Config
from train.study import Arm, Study, changed


def annealed(config: Config) -> Config:
    """Against homogeneous modules: each step at first prefers its own ones, which ends after half of the steps."""
    steps = sum(phase.steps for phase in config.phases) // 2
    fields: dict[str, Any] = {"preference": 24.0, "anneal_steps": steps}
    return changed(
        config,
        {
            "model.ffn": dataclasses.replace(config.model.ffn, **fields),
            "model.attention": config.model.attention
            if config.model.attention == ChoiceConfig(choice="ordered")
            else dataclasses.replace(config.model.attention, **fields),
        },
    )


def first_phase(quarters: int) -> Callable[[Config], Config]:
    """So many quarters of all steps for the first phase, and the rest for the second; three are the study's own."""

    def change(config: Config) -> Config:
        steps = sum(phase.steps for phase in config.phases)
        first = steps * quarters // 4
        return changed(config, {"phases.pretrain.steps": first, "phases.mom.steps": steps - first})

    return change


def get_study() -> Study:
    exploring = {"model.router.noise": 1.0, "model.router.noise_steps": 500}
    by_bias = {"model.balance": BalanceConfig(weight=0.0, bias_rate=0.01)}
    return Study(
        name="phases",
        question="Are two phases needed, and what helps without them?",
        base=sizes(steps=200),
        arms=(
            VANILLA,
            VANILLA_AT_ONCE,
            Arm("paper, two phases", paper(top_k=2)),
            Arm("paper, from scratch", (paper(top_k=2), from_scratch)),
            Arm("paper, from scratch, annealed preference", (paper(top_k=2), from_scratch, annealed)),
            Arm("paper, from scratch, noise", (paper(top_k=2), from_scratch, exploring)),
            Arm("ours, two phases", ours()),
            *(Arm(f"ours after {n}/4 of the steps", (first_phase(n), ours())) for n in (1, 2)),
            OURS_AT_ONCE,
            Arm("ours, from scratch, balance by bias", (ours(), from_scratch, by_bias)),
        ),
    )
