"""Checkpoints that score or generate texts: models with a tokenizer that can encode."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from train.checkpoints.formats import Model
from train.checkpoints.models import encoding_tokenizer, open_model
from train.cli import notify
from train.data.tokenizers import Tokenizer


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
    tokenizer = encoding_tokenizer(checkpoint, model, path)
    return ScoredModel(checkpoint, model, tokenizer)
