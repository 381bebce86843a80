"""Fine grain: the four layers' FFNs as one pool of sixteen narrow modules, of which each step takes four.

Command: python -m train.main --config configs/special/fine_grained.py
"""

from configs.special.base import experiment
from mom_jax.config import ChoiceConfig
from train.config import Config

GRAIN = 4  # narrow modules do the work of a layer's FFN


def get_config() -> Config:
    return experiment(
        "fine_grained",
        module_d_ff=128,
        num_ffn_modules=4 * GRAIN,
        skip=False,
        attention=ChoiceConfig(choice="ordered"),
        ffn=ChoiceConfig(top_k=GRAIN, scale=float(GRAIN)),
    )
