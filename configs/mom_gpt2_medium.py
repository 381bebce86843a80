"""OpenAI's gpt2-medium made a Mixture-of-Modules, the one of mom_medium.py: phase 2 alone.

First: python -m train.convert --input gpt2-medium --output runs/pretrained_gpt2_medium --to vanilla
Command: python -m train.main --config configs/mom_gpt2_medium.py

`gpt2-medium` is the folder of Hugging Face's model of that name, with config.json, model.safetensors, vocab.json
and merges.txt. The model starts as the GPT-2: at first every step prefers its own layer's modules, which weigh 1
there (docs/training.md). Cost: a quarter of the second phase of mom_medium.py, and no first one. Not run yet. The
paper's routing: configs/paper_routing/gpt2_medium.py.
"""

from configs.paper import mom_of_pretrained
from train.config import Config


def get_config() -> Config:
    return mom_of_pretrained("medium", run="runs/mom_gpt2_medium")
