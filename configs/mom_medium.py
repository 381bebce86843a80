"""MoM-medium by our recipe: GPT-2-medium's 24 layers as 1 anchor + 2 chunks of 11 layers + 1 anchor.

Command: python -m train.main --config configs/mom_medium.py

Attention stays in order, and of the FFNs, cut in halves, a token takes any two of its chunk at each step. `python
-m configs.paper`: 354,936,336 parameters, depth 24 (GPT-2: 24), 0.758 forward GFLOPs per token at 1024 tokens
(GPT-2: 0.757). Why this recipe: docs/training.md; it has been measured at 2 M parameters only (docs/claims.md). The
paper's routing at this size: configs/paper_routing/medium.py.
"""

from configs.paper import mom
from train.config import Config


def get_config() -> Config:
    return mom("medium", run="runs/mom_medium")
