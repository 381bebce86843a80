"""GPT-2-small, 12 layers of width 768: phase 1 of mom_small.py and paper_routing/small.py by itself.

Command: python -m train.main --config configs/gpt2_small.py

`python -m configs.paper`: 124,439,808 parameters, depth 12, 0.266 forward GFLOPs per token at 1024 tokens. The
paper's figure for this size is 122M parameters.
"""

from configs.paper import gpt2
from train.config import Config


def get_config() -> Config:
    return gpt2("small", run="runs/gpt2_small")
