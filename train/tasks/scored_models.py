"""Checkpoints that score or generate texts: models with a tokenizer that can encode."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from mom_jax.fields import ConfigError, require
from train.checkpoints.formats import Model
from train.checkpoints.models import open_model
from train.cli import notify
from train.data import tokenizers
from train.data.tokenizers import Tokenizer
from train.data.tokenizers.token_ids import IdsTokenizer


class ScoredModel(NamedTuple):
    """A model with the tokenizer that encodes texts for it. checkpoint: the path it was asked for by."""

    checkpoint: str
    model: Model
    tokenizer: Tokenizer


def scored_models(checkpoints: Sequence[str], *, tokenizer: str | None, best: bool) -> Iterator[ScoredModel]:
    """Opens the checkpoints one after the other, so that one at a time is in memory.

    tokenizer: a file or folder, where none lies beside a checkpoint. best: of a phase the step with the lowest
    validation loss, not the latest. What is wrong with any of them raises ConfigError before the first is given.
    """
    if len(checkpoints) > 1:
        for checkpoint in checkpoints:
            _open(checkpoint, tokenizer, best)
    for checkpoint in checkpoints:
        scored = _open(checkpoint, tokenizer, best)
        notify(f"{checkpoint}: {scored.model.description}")
        yield scored


def _open(checkpoint: str, path: str | None, best: bool) -> ScoredModel:
    model = open_model(checkpoint, field="checkpoint", best=best)
    name = f"checkpoint={checkpoint!r}"
    tokenizer = model.tokenizer
    if path is not None:
        tokenizer = tokenizers.load(path, field="tokenizer")
        name = f"tokenizer={path!r}"
        known = model.fingerprint in ("", tokenizer.fingerprint)
        require(known, "tokenizer", path, "is not the one the model was trained with")
    if tokenizer is None:
        raise ConfigError(f"{name}: has no tokenizer beside it; give one with --tokenizer")
    if isinstance(tokenizer, IdsTokenizer):
        raise ConfigError(
            f"{name}: was trained on token files without a tokenizer, and texts need one; give --tokenizer"
        )
    if tokenizer.vocab_size > model.config.vocab_size:
        ids = f"the tokenizer has {tokenizer.vocab_size} ids, the model {model.config.vocab_size}"
        raise ConfigError(f"{name}: {ids}")
    return ScoredModel(checkpoint, model, tokenizer)
