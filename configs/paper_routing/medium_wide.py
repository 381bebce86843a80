"""The paper's MoM-medium made wide: the anchors and modules of paper_routing/medium.py with K = 3, H = 3.

Command: python -m train.main --config configs/paper_routing/medium_wide.py

`python -m configs.paper`: 358,773,808 parameters, depth 8 (GPT-2: 24), 0.647 forward GFLOPs per token at 1024
tokens (GPT-2: 0.757). As much shallower as paper_routing/large.py; its steps are not the paper's own for this size,
which are not known to us.
"""

from configs.paper import paper
from train.config import Config


def get_config() -> Config:
    return paper("medium", top_k=3, num_steps=3, run="runs/paper_medium_wide")
