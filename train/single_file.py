"""A model as one safetensors file: its parameters, and its configuration in the header.

The arrays have the names of our parameters, joined by dots (`chunks.0.attention.qkv_kernel`), and are float32.
"""

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from mom_jax.config import ModelConfig
from mom_jax.fields import ConfigError, from_dict
from train.step import abstract_params
from train.weights import Weights, metadata

FORMAT, VERSION = "mom_jax", 1
# In the header; its values are texts.
FORMAT_KEY, VERSION_KEY, CONFIG_KEY, TOKENIZER_KEY = "format", "version", "config", "tokenizer"


@dataclasses.dataclass(frozen=True)
class SingleFile:
    """What such a file has. tokenizer: the fingerprint of the one that the model was trained with, or empty."""

    config: ModelConfig
    params: dict[Any, Any]
    tokenizer: str


def save(path: Path, config: ModelConfig, params: Mapping[Any, Any], tokenizer: str = "") -> None:
    """Writes the file, whole or not at all."""
    header = {
        FORMAT_KEY: FORMAT,
        VERSION_KEY: str(VERSION),
        CONFIG_KEY: json.dumps(dataclasses.asdict(config)),
        TOKENIZER_KEY: tokenizer,
    }
    arrays = {name: np.ascontiguousarray(array) for name, array in _flatten(params)}
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        save_file(arrays, partial, metadata=header)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def load(path: Path, field: str) -> SingleFile:
    """Reads the file. Raises `ConfigError` naming `field` if it is not ours, not whole, or does not fit itself."""
    header = metadata(path, field)
    name = f"{field}={str(path)!r}"
    if header.get(FORMAT_KEY) != FORMAT:
        raise ConfigError(f"{name}: was not written by mom_jax (its header has no {FORMAT_KEY} {FORMAT!r})")
    if header.get(VERSION_KEY) != str(VERSION):
        raise ConfigError(f"{name}: version {header.get(VERSION_KEY)!r}: this program reads {VERSION}")
    config = from_dict(ModelConfig, json.loads(header[CONFIG_KEY]))
    wanted = {key: leaf.shape for key, leaf in _flatten(abstract_params(config))}
    weights = Weights([path], field)
    for key in sorted(wanted.keys() ^ weights.keys()):
        raise ConfigError(f"{name}: {key} is {'missing' if key in wanted else 'surplus'}")
    for key, shape in wanted.items():
        if weights.shapes[key] != shape:
            raise ConfigError(f"{name}: {key} has the shape {weights.shapes[key]}, its configuration {shape}")
    return SingleFile(config, _nest(weights), header.get(TOKENIZER_KEY, ""))


def _flatten(tree: Mapping[Any, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        name = f"{path}.{key}" if path else str(key)
        if isinstance(value, Mapping):
            yield from _flatten(value, name)
        else:
            yield name, value


def _nest(flat: Mapping[str, np.ndarray]) -> dict[Any, Any]:
    tree: dict[Any, Any] = {}
    for name in flat:
        *path, last = (int(key) if key.isdecimal() else key for key in name.split("."))
        node = tree
        for key in path:
            node = node.setdefault(key, {})
        node[last] = flat[name]
    return tree
