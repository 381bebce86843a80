"""Layer skipping: every token takes each sublayer in its order, or skips it.

Command: python -m train.main --config configs/special/layer_skipping.py
"""

from configs.special.base import experiment
from mom_jax.config import ChoiceConfig
from train.config import Config


def get_config() -> Config:
    choice = ChoiceConfig(choice="ordered_or_skip")
    return experiment("layer_skipping", top_k=1, attention=choice, ffn=choice)
