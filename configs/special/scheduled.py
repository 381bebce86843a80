"""A schedule: four attention modules and four FFN modules in their order, and then once more; no router.

Command: python -m train.main --config configs/special/scheduled.py
"""

from configs.special.base import experiment
from mom_jax.config import ChoiceConfig
from train.config import Config


def get_config() -> Config:
    cycle = ChoiceConfig(choice="ordered", schedule=(0, 1, 2, 3) * 2)
    return experiment("scheduled", num_steps=8, top_k=1, attention=cycle, ffn=cycle)
