"""GPT-2-medium, 24 layers of width 1024: phase 1 of mom_medium.py and paper_routing/medium.py by itself.

Command: python -m train.main --config configs/gpt2_medium.py

`python -m configs.paper`: 354,823,168 parameters, depth 24, 0.757 forward GFLOPs per token at 1024 tokens.
"""

from configs.paper import gpt2
from train.config import Config


def get_config() -> Config:
    return gpt2("medium", run="runs/gpt2_medium")
