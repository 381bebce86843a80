"""A mixture of experts with one pool: a plain attention per step, and for each FFN the best two of the same eight.

Command: python -m train.main --config configs/special/moe_shared_pool.py
"""

from configs.special.base import experiment
from mom_jax.config import ChoiceConfig
from train.config import Config


def get_config() -> Config:
    return experiment(
        "moe_shared_pool", num_ffn_modules=8, top_k=2, skip=False, attention=ChoiceConfig(choice="ordered")
    )
