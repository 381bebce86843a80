"""Early exit: every token takes the sublayers in their order until it leaves, and then no more of them.

Command: python -m train.main --config configs/special/early_exit.py
"""

from configs.special.base import experiment
from mom_jax.config import ChoiceConfig
from train.config import Config


def get_config() -> Config:
    choice = ChoiceConfig(choice="ordered_or_skip", exit=True)
    return experiment("early_exit", top_k=1, attention=choice, ffn=choice)
