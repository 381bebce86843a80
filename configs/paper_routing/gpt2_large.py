"""OpenAI's gpt2-large made the MoM of paper_routing/large_deep.py: phase 2 alone, K = 1, H = 24.

First: python -m train.convert --input gpt2-large --output runs/pretrained_gpt2_large --to vanilla
Command: python -m train.main --config configs/paper_routing/gpt2_large.py

`gpt2-large` is the folder of Hugging Face's model of that name, with config.json, model.safetensors, vocab.json and
merges.txt. The model starts as the GPT-2: every step prefers the module of its own number, steps beyond the last
prefer SKIP; the preference is gone after half of the 5000 steps. Cost: a quarter of the second phase of
paper_routing/large_deep.py, and no first one. Not run yet. The paper's start, free choice by new routers, is

    --model.attention.preference 0 --model.ffn.preference 0
"""

from configs.paper import paper_of_pretrained
from train.config import Config


def get_config() -> Config:
    return paper_of_pretrained("large", num_steps=24, run="runs/paper_gpt2_large")
