"""A vanilla transformer: step h has attention module h and FFN module h, and no router.

Command: python -m train.main --config configs/special/vanilla.py
"""

from configs.special.base import experiment
from mom_jax.config import ChoiceConfig
from train.config import Config


def get_config() -> Config:
    ordered = ChoiceConfig(choice="ordered")
    return experiment("vanilla", top_k=1, attention=ordered, ffn=ordered)
