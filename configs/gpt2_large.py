"""GPT-2-large, 36 layers of width 1280: phase 1 of mom_large.py, paper_routing/large.py and the deep ones by itself.

Command: python -m train.main --config configs/gpt2_large.py

`python -m configs.paper`: 774,030,080 parameters, depth 36, 1.639 forward GFLOPs per token at 1024 tokens. The
paper's figure for this size is 774M parameters.
"""

from configs.paper import gpt2
from train.config import Config


def get_config() -> Config:
    return gpt2("large", run="runs/gpt2_large")
