"""MoM-small by our recipe: GPT-2-small's 12 layers as 2 anchors + a chunk of 8 layers + 2 anchors.

Command: python -m train.main --config configs/mom_small.py

Attention stays in order, and of the FFNs, cut in halves, a token takes any two of the chunk at each step. `python
-m configs.paper`: 124,470,672 parameters, depth 12 (GPT-2: 12), 0.266 forward GFLOPs per token at 1024 tokens
(GPT-2: 0.266). Why this recipe: docs/training.md; it has been measured at 2 M parameters only (docs/claims.md). The
paper's routing at this size: configs/paper_routing/small.py.
"""

from configs.paper import mom
from train.config import Config


def get_config() -> Config:
    return mom("small", run="runs/mom_small")
