"""The paper's MoM-small: GPT-2-small's 12 layers as 2 anchors + a chunk of 8 modules + 2 anchors, K = 1, H = 13.

Command: python -m train.main --config configs/paper_routing/small.py

`python -m configs.paper`: 126,020,370 parameters, depth 17 (GPT-2: 12), 0.386 forward GFLOPs per token at 1024
tokens (GPT-2: 0.266). The paper reports 122M parameters, and better GLUE and XSUM than GPT-2 of the same size. Its
numbers of modules and steps for this size are not known to us; these follow the worked example of the large one
(configs/paper.py).
"""

from configs.paper import paper
from train.config import Config


def get_config() -> Config:
    return paper("small", top_k=1, num_steps=13, run="runs/paper_small")
