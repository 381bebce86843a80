"""The models that are compared: their names, and what tells them apart."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mom_jax.config import ModelConfig
from mom_jax.fields import ConfigError, require
from train.checkpoints.locate import FOLDER
from train.checkpoints.models import open_model
from train.data.tokenizers import Tokenizer

_PLAIN = {FOLDER}  # says nothing in a name


@dataclasses.dataclass(frozen=True)
class Model:
    """A model to fine-tune, without its parameters, which `open` reads.

    name: short, different from the others'. folder: the same with the beginning of the digest, for its files. digest:
    a sha256 of configuration, parameters and tokenizer.
    """

    path: str
    best: bool
    name: str
    folder: str
    digest: str
    description: str
    config: ModelConfig
    tokenizer: Tokenizer

    def open(self) -> dict[Any, Any]:
        """The parameters. Raises ConfigError if they are others than before."""
        opened = open_model(self.path, field="checkpoint", best=self.best)
        require(
            digest(opened.config, opened.params, self.tokenizer) == self.digest,
            "checkpoint",
            self.path,
            "has changed since this program began",
        )
        return opened.params


def digest(config: ModelConfig, params: dict[Any, Any], tokenizer: Tokenizer) -> str:
    """A sha256 of a model."""
    result = hashlib.sha256(json.dumps([dataclasses.asdict(config), tokenizer.fingerprint]).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        result.update(jax.tree_util.keystr(path).encode())
        result.update(np.ascontiguousarray(leaf).data)
    return result.hexdigest()


def inspect(
    checkpoints: Sequence[str], length: int, field: str, best: bool, notify: Callable[[str], None]
) -> list[Model]:
    """Opens each model once, so that what is wrong with the last is known before the first is trained.

    Raises ConfigError for what is no model, has no tokenizer, or has a context shorter than `length` (named `field`).
    """
    require(len(checkpoints) > 0, "checkpoint", checkpoints, "must name at least one")
    names = _names(checkpoints)
    models = []
    for path, name in zip(checkpoints, names, strict=True):
        opened = open_model(path, field="checkpoint", best=best)
        config, tokenizer = opened.config, opened.tokenizer
        if tokenizer is None:
            raise ConfigError(f"checkpoint={path!r}: has no tokenizer beside it, which a text needs")
        tokenizer.encode("")  # refuses where the ids' texts are not known
        fits = tokenizer.vocab_size <= config.vocab_size
        require(fits, "checkpoint", path, f"its tokenizer has {tokenizer.vocab_size} ids, more than the model's")
        require(length <= config.context_length, field, length, f"must be at most {path}'s {config.context_length}")
        own = digest(config, opened.params, tokenizer)
        folder = f"{_parts(path)[-1]}-{own[:12]}"
        models.append(Model(path, best, name, folder, own, opened.description, config, tokenizer))
        notify(f"{name}: {path}: {opened.description}")
    for model in models[1:]:
        twins = [other for other in models[: models.index(model)] if other.digest == model.digest]
        require(not twins, "checkpoint", model.path, f"is the same model as {twins[0].path!r}" if twins else "")
    return models


def _parts(path: str) -> list[str]:
    parts = Path(path).expanduser().resolve().parts[1:]
    return [part.removesuffix(".safetensors") for part in parts if part not in _PLAIN] or ["model"]


def _names(paths: Sequence[str]) -> list[str]:
    """For each path so many of its last parts as tell all of them apart."""
    parts = [_parts(path) for path in paths]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(own[-count:]) for own in parts]
        if len(set(names)) == len(names):
            return names
    whole = [str(Path(path).expanduser().resolve()) for path in paths]
    if len(set(whole)) == len(whole):
        return whole
    raise ConfigError(f"checkpoint={list(paths)!r}: names a model twice")
