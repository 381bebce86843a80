"""Parameter sharing: one attention module and one FFN module, which every step uses; no router.

Command: python -m train.main --config configs/special/parameter_sharing.py
"""

from configs.special.base import experiment
from train.config import Config


def get_config() -> Config:
    return experiment("parameter_sharing", top_k=1, num_attn_modules=1, num_ffn_modules=1)
