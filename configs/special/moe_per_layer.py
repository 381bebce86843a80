"""A mixture of experts: a plain attention per step, and for its FFN the best two of four experts that only it has.

Command: python -m train.main --config configs/special/moe_per_layer.py
"""

import math

from configs.special.base import experiment
from mom_jax.config import BalanceConfig, ChoiceConfig
from train.config import Config

STEPS, EXPERTS = 4, 4


def get_config() -> Config:
    # Step h may use experts 4h to 4h + 3 of the pool.
    own = tuple(
        tuple(0.0 if expert // EXPERTS == h else -math.inf for expert in range(STEPS * EXPERTS)) for h in range(STEPS)
    )
    return experiment(
        "moe_per_layer",
        num_attn_modules=STEPS,
        num_ffn_modules=STEPS * EXPERTS,
        num_steps=STEPS,
        top_k=2,
        skip=False,
        attention=ChoiceConfig(choice="ordered"),
        ffn=ChoiceConfig(prior=own),
        balance=BalanceConfig(kind="depthwise"),
    )
