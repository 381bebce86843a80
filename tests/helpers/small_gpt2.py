"""A small GPT-2 and a small tokenizer of its kind in the files that GPT-2 has, for tests."""

import json
from pathlib import Path

import jax
import numpy as np
import tiny
from safetensors.numpy import save_file
from small import random_params

from mom_jax.interop.gpt2 import config_from_gpt2, config_to_gpt2, params_to_gpt2

EOS = "<|endoftext|>"


def write_vocabulary(folder: Path, texts: list[str], size: int = 600) -> Path:
    """Trains on `texts` and writes `vocab.json` and `merges.txt`; returns the former's path."""
    import tokenizers

    trained = tokenizers.Tokenizer(tokenizers.models.BPE())
    trained.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    # GPT-2's separator has the last id.
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=size - 1, initial_alphabet=alphabet, show_progress=False)
    trained.train_from_iterator(texts, trainer)
    model = json.loads(trained.to_str())["model"]
    vocabulary = {**model["vocab"], EOS: len(model["vocab"])}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in model["merges"]), ""]
    (folder / "merges.txt").write_text("\n".join(lines), "utf-8")
    return folder / "vocab.json"


def write_gpt2(folder: Path, options: dict) -> Path:
    """Writes a random GPT-2 as `save_pretrained` of model and tokenizer leaves it. options: of its config.json."""
    write_vocabulary(folder, [" ".join(tiny.WORDS) * 20], 300)
    size = len(json.loads((folder / "vocab.json").read_text()))
    config = config_from_gpt2(options | {"vocab_size": size})
    arrays = params_to_gpt2(jax.tree.map(np.asarray, random_params(config)), config)
    save_file({name: np.ascontiguousarray(a) for name, a in arrays.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config_to_gpt2(config)))
    return folder
