"""Tiny models with a tokenizer, as users have them on disk."""

import dataclasses
import functools
from pathlib import Path

import glue_files
import tiny

from mom_jax.config import ModelConfig
from mom_jax.sharding import make_mesh
from train.checkpoints.models import write_run
from train.data.tokenizers.spm import SentencePieceTokenizer, train_sentencepiece
from train.training.initial_state import fresh_params

VOCABULARY = 300


@functools.cache
def tokenizer() -> SentencePieceTokenizer:
    corpus = [" ".join([*glue_files.NEUTRAL, *glue_files.GOOD, *glue_files.BAD])] * 20
    return SentencePieceTokenizer(train_sentencepiece(corpus, VOCABULARY))


def config(folder: Path, **fields) -> ModelConfig:
    """tests/tiny.py's, with room for a summary."""
    model = tiny.config(folder, source="builtin:stdlib").model
    small = {"context_length": 64, "num_bottom": 0, "num_top": 0, "remat": "none"}  # compiles faster
    return dataclasses.replace(model, **(small | fields))


def write(folder: Path, model: ModelConfig, seed: int = 0) -> str:
    """An untrained model as a run; returns its path."""
    write_run(folder, "mom", model, fresh_params(model, seed, make_mesh()), tokenizer())
    return str(folder)
