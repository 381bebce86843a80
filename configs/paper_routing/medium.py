"""The paper's MoM-medium: GPT-2-medium's 24 layers as 1 anchor + 2 chunks of 11 modules + 1 anchor, K = 1, H = 16.

Command: python -m train.main --config configs/paper_routing/medium.py

`python -m configs.paper`: 358,773,808 parameters, depth 34 (GPT-2: 24), 1.156 forward GFLOPs per token at 1024
tokens (GPT-2: 0.757). The paper reports better GLUE and XSUM than GPT-2 of the same size. Its numbers of modules and
steps for this size are not known to us; these follow the worked example of the large one (configs/paper.py).
"""

from configs.paper import paper
from train.config import Config


def get_config() -> Config:
    return paper("medium", top_k=1, num_steps=16, run="runs/paper_medium")
