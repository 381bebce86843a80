"""Checkpoints to analyse: a model on a mesh, and the text that it is analysed on."""

import dataclasses
from collections.abc import Iterable
from typing import Any

from jax.sharding import Mesh

from mom_jax.config import ModelConfig
from mom_jax.fields import ConfigError, require
from mom_jax.sharding import check_mesh
from train.analysis.text import held_out, of_source
from train.batch import Rows
from train.checkpoints.formats import is_run
from train.checkpoints.locate import check_tokenizer, find, tell_data
from train.checkpoints.models import described, encoding_tokenizer, open_model
from train.cli import notify
from train.data.prepared import prepare
from train.data.tokenizers import Tokenizer


@dataclasses.dataclass(frozen=True)
class TextFlags:
    """source: `data.source`, or None for a run's held-out data. tokenizer: a file or folder, where none lies beside the
    checkpoint. tokens: how many are read. length: tokens of a sequence, 0 for the run's or the model's own.
    batch_size: sequences that are computed together."""

    source: str | None = None
    tokenizer: str | None = None
    tokens: int = 16384
    length: int = 0
    batch_size: int = 8

    def __post_init__(self) -> None:
        for name in ("tokens", "batch_size"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "must be at least 1")
        length = self.length
        require(length == 0 or length >= 2, "length", length, "must be 0 for the model's own, or at least 2")


@dataclasses.dataclass(frozen=True)
class Opened:
    """A checkpoint whose model lies on a mesh. name: the path it was asked for by. facts: for a record. text: the
    batches to analyse it on. tokenizer: None where none is known, as of token files."""

    name: str
    facts: dict[str, Any]
    config: ModelConfig
    params: dict[Any, Any]
    tokenizer: Tokenizer | None
    text: Iterable[Rows]


def open_checkpoint(name: str, flags: TextFlags, *, best: bool, mesh: Mesh) -> Opened:
    """Opens a checkpoint of any format. best: of a run's phase the step with the lowest validation loss.

    Raises ConfigError for a model without modules, where there is no text, or no tokenizer for it.
    """
    run = is_run(name, "checkpoint")
    if flags.source is None:
        if not run:
            must = f"must name the text to analyse {name!r} on, which is no run with data of its own"
            raise ConfigError(f"data.source=None: {must} (text:GLOB, tfds:NAME/CONFIG, builtin:stdlib)")
        require(flags.tokenizer is None, "tokenizer", flags.tokenizer, "goes with --data.source")
        return _on_its_own(name, flags, best=best, mesh=mesh)
    if run:
        found = find(name, field="checkpoint", best=best)
        meta = found.meta()
        model, data = described(found, meta), meta.config.data
        length, packed = data.length, data.packing == "documents"
        facts: dict[str, Any] = {"checkpoint": str(found), "phase": meta.phase, "step": meta.step}
    else:
        model = open_model(name, field="checkpoint", best=best)
        length, packed = model.config.context_length, False
        facts = {"checkpoint": name}
    _check(name, model.config, mesh, flags)
    tokenizer = encoding_tokenizer(name, model, flags.tokenizer)
    params = found.params(model.config, mesh) if run else model.params
    text = of_source(flags.source, tokenizer, length=flags.length or length, rows=flags.batch_size, packed=packed)
    facts |= {"source": flags.source, "description": model.description}
    return Opened(name, facts, model.config, params, tokenizer, text)


def _on_its_own(name: str, flags: TextFlags, *, best: bool, mesh: Mesh) -> Opened:
    """A run's checkpoint on what the run holds out."""
    found = find(name, field="checkpoint", best=best)
    meta = found.meta()
    config, data = meta.model, meta.config.data
    _check(name, config, mesh, flags)
    tell_data(found, data, notify)
    prepared = prepare(data, notify)
    check_tokenizer(prepared.tokenizer.fingerprint, meta, f"data.tokenizer={data.tokenizer!r}")
    own = dataclasses.replace(data, batch_size=flags.batch_size, length=flags.length or data.length)
    facts = {"checkpoint": str(found), "phase": meta.phase, "step": meta.step}
    facts |= {"source": f"held out of {data.source}", "description": described(found, meta).description}
    text = held_out(prepared, own, flags.tokens)
    return Opened(name, facts, config, found.params(config, mesh), prepared.tokenizer, text)


def _check(name: str, config: ModelConfig, mesh: Mesh, flags: TextFlags) -> None:
    if not config.num_chunks:
        raise ConfigError(f"checkpoint={name!r}: its model has no modules (num_chunks=0): there is nothing to analyse")
    check_mesh(config, mesh.shape)
    context = config.context_length
    require(flags.length <= context, "length", flags.length, f"must be at most the model's context of {context}")
