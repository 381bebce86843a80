"""A small tokenizer of GPT-2's kind in the files that GPT-2 has, for tests."""

import json
from pathlib import Path

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
