"""MoM-large by our recipe, deep: the anchors and layers of mom_large.py in 24 steps.

Command: python -m train.main --config configs/mom_large_deep.py

The steps go through the layers in turn, some of them twice in a row; of the FFNs' halves a token takes any two.
`python -m configs.paper`: 774,249,380 parameters, depth 50 (GPT-2: 36, so +38.9 %), 2.230 forward GFLOPs per token
at 1024 tokens (GPT-2: 1.639, so +36.1 %). Why this recipe: docs/training.md; it has been measured at 2 M parameters
only (docs/claims.md). The paper's routing at this size: configs/paper_routing/large_deep.py.
"""

from configs.paper import mom
from train.config import Config


def get_config() -> Config:
    return mom("large", num_steps=24, run="runs/mom_large_deep")
