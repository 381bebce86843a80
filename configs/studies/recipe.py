"""The search for our recipe: attention in order and FFN modules of half a width, and one thing changed at a time.

All arms have the vanilla model's parameters, routers aside.

Command: python -m train.study configs/studies/recipe.py
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from configs.studies.setting import OURS, OURS_DEEP, VANILLA, ours, parts, sizes
from mom_jax.config import BalanceConfig, ChoiceConfig
from train.config import Config
from train.study import Arm, Study, changed


def ffn(**fields: Any) -> Callable[[Config], Config]:
    """Other fields of the FFN's choices."""
    return lambda config: changed(config, {"model.ffn": dataclasses.replace(config.model.ffn, **fields)})


def get_study() -> Study:
    return Study(
        name="recipe",
        question="What makes a MoM better than the vanilla model of as many parameters?",
        base=sizes(),
        seeds=(0, 1),
        arms=(
            VANILLA,
            OURS,
            Arm("whole FFNs", (ours(), parts(1))),
            Arm("quarters", (ours(), parts(4))),
            Arm("GRU", ours(kind="gru", norm="none")),
            Arm("GRU, norm", ours(kind="gru")),
            Arm("no step bias", (ours(step_bias=None), ffn(scale=2.0))),
            Arm("exact start", ours(score_init=0.0)),
            Arm("step bias 1", (ours(step_bias=1.0), ffn(scale=1.37))),
            Arm("step bias 4", (ours(step_bias=4.0), ffn(scale=1.02))),
            Arm("softmax", (ours(scoring="softmax", weights="renormalised"), ffn(scale=2.0))),
            Arm("SKIP", (ours(), {"model.skip": True})),
            Arm("balance 0", (ours(), {"model.balance": BalanceConfig(weight=0.0)})),
            Arm("balance 0.01", (ours(), {"model.balance": BalanceConfig(weight=0.01)})),
            Arm("balance by bias", (ours(), {"model.balance": BalanceConfig(weight=0.0, bias_rate=0.01)})),
            Arm("routers' rate 1", (ours(), {"phases.mom.optim.router_multiplier": 1.0})),
            Arm("routers' rate 10", (ours(), {"phases.mom.optim.router_multiplier": 10.0})),
            Arm("K=3", (ours(), parts(2, 3))),
            Arm("K=4", (ours(), parts(2, 4))),
            Arm("values", (ours(), {"model.attention": ChoiceConfig(routes="values", scale=1.135)})),
            Arm("deep", OURS_DEEP.config),
        ),
    )
