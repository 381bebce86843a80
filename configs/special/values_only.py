"""Values only: each step has queries and keys of its own, and of four modules chooses two for values and outputs.

Command: python -m train.main --config configs/special/values_only.py
"""

from configs.special.base import experiment
from mom_jax.config import ChoiceConfig
from train.config import Config


def get_config() -> Config:
    values = ChoiceConfig(routes="values")
    return experiment("values_only", top_k=2, skip=False, attention=values, ffn=ChoiceConfig(choice="ordered"))
