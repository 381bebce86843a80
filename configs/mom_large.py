"""MoM-large by our recipe: GPT-2-large's 36 layers as 1 anchor + 2 chunks of 17 layers + 1 anchor.

Command: python -m train.main --config configs/mom_large.py

Attention stays in order, and of the FFNs, cut in halves, a token takes any two of its chunk at each step. `python
-m configs.paper`: 774,248,904 parameters, depth 36 (GPT-2: 36, so +0.0 %), 1.642 forward GFLOPs per token at 1024
tokens (GPT-2: 1.639, so +0.2 %). Why this recipe: docs/training.md; it has been measured at 2 M parameters only
(docs/claims.md). The paper's routing at this size: configs/paper_routing/large.py.
"""

from configs.paper import mom
from train.config import Config


def get_config() -> Config:
    return mom("large", run="runs/mom_large")
