"""Mixture-of-depths: sublayers in their order; at every other step an eighth of a sequence's tokens take them.

Command: python -m train.main --config configs/special/mixture_of_depths.py
"""

import dataclasses
import math

from configs.special.base import experiment
from mom_jax.config import BalanceConfig, ChoiceConfig, RouterConfig
from train.config import Config

STEPS = 4


def get_config() -> Config:
    # Step h has module h. The last class is SKIP: where it is forbidden, all tokens take the module.
    own = [[0.0 if c == h else -math.inf for c in range(STEPS)] for h in range(STEPS)]
    table = tuple((*row, 0.0 if h % 2 else -math.inf) for h, row in enumerate(own))
    choice = ChoiceConfig(prior=table, capacity=0.125)
    config = experiment(
        "mixture_of_depths",
        num_steps=STEPS,
        top_k=1,
        attention=choice,
        ffn=choice,
        # The capacity decides how many; no other balance is wanted.
        balance=BalanceConfig(weight=0.0),
    )
    router = RouterConfig(kind="mlp", dim=config.model.router.dim, temperature=1.0)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, router=router))
