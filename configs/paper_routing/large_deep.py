"""The paper's MoM-large, deep: the anchors and modules of paper_routing/large.py with K = 1, H = 24.

Command: python -m train.main --config configs/paper_routing/large_deep.py

`python -m configs.paper`: 778,773,320 parameters, depth 50 (GPT-2: 36, so +38.9 %), 2.453 forward GFLOPs per token
at 1024 tokens (GPT-2: 1.639, so +49.7 %). The paper reports 774M parameters (here without the routers) and, for
over 38 % more depth, 1.4 more on GLUE and 1 more on XSUM than GPT-2-large.
"""

from configs.paper import paper
from train.config import Config


def get_config() -> Config:
    return paper("large", top_k=1, num_steps=24, run="runs/paper_large_deep")
