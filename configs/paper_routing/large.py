"""The paper's MoM-large, wide: GPT-2-large's 36 layers as 1 anchor + 2 chunks of 17 modules + 1 anchor, K = 3, H = 5.

Command: python -m train.main --config configs/paper_routing/large.py

`python -m configs.paper`: 778,773,320 parameters, depth 12 (GPT-2: 36, so -66.7 %), 1.466 forward GFLOPs per token
at 1024 tokens (GPT-2: 1.639, so -10.5 %). The paper reports 774M parameters (here without the routers) and, for
over 60 % less depth, 16 % fewer TFLOPs and 43 % less memory than GPT-2-large at comparable quality. Without the
routers and with the masked half of attention it is -16.3 % here.
"""

from configs.paper import paper
from train.config import Config


def get_config() -> Config:
    return paper("large", top_k=3, num_steps=5, run="runs/paper_large")
