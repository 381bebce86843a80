"""OpenAI's gpt2-large made a Mixture-of-Modules, the one of mom_large.py: phase 2 alone.

First: python -m train.convert --input gpt2-large --output runs/pretrained_gpt2_large --to vanilla
Command: python -m train.main --config configs/mom_gpt2_large.py

`gpt2-large` is the folder of Hugging Face's model of that name, with config.json, model.safetensors, vocab.json and
merges.txt. The model starts as the GPT-2: at first every step prefers its own layer's modules, which weigh 1 there
(docs/training.md). Cost: a quarter of the second phase of mom_large.py, and no first one. Not run yet. The paper's
routing: configs/paper_routing/gpt2_large.py.
"""

from configs.paper import mom_of_pretrained
from train.config import Config


def get_config() -> Config:
    return mom_of_pretrained("large", run="runs/mom_gpt2_large")
