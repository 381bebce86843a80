"""A model as one safetensors file: its parameters, and its configuration in the header.

The arrays have the names of our parameters, joined by dots (`chunks.0.attention.qkv_kernel`), and are float32.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mom_jax.config import ModelConfig
from mom_jax.fields import ConfigError, from_dict, to_dict
from mom_jax.interop.arrays import check, dotted, flatten, nest
from train.checkpoints.weights import Weights, check_claim, metadata, save_checked
from train.files import parse_json, to_json, whole_file
from train.steps.state import abstract_params

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
        CONFIG_KEY: to_json(to_dict(config)).decode().rstrip(),
        TOKENIZER_KEY: tokenizer,
    }
    with whole_file(path, new=True) as partial:
        save_checked(partial, {dotted(place): array for place, array in flatten(params)}, header)


def load(path: Path, field: str) -> SingleFile:
    """Reads the file. Raises `ConfigError` naming `field` if it is not ours, not whole, or does not fit itself."""
    header = metadata(path, field)
    name = f"{field}={str(path)!r}"
    if header.get(FORMAT_KEY) != FORMAT:
        raise ConfigError(f"{name}: was not written by mom_jax (its header has no {FORMAT_KEY} {FORMAT!r})")
    if header.get(VERSION_KEY) != str(VERSION):
        raise ConfigError(f"{name}: version {header.get(VERSION_KEY)!r}: this program reads {VERSION}")
    if CONFIG_KEY not in header:
        raise ConfigError(f"{name}: its header has no {CONFIG_KEY}")
    try:
        config = from_dict(ModelConfig, parse_json(header[CONFIG_KEY], CONFIG_KEY, old=True))
    except ConfigError as error:
        raise ConfigError(f"{name}: in its header, {error}") from None
    weights = Weights([path], field)
    try:
        check_claim(config, weights.shapes)
        check({dotted(place): leaf.shape for place, leaf in flatten(abstract_params(config))}, weights.shapes)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from None
    wrong = next((key for key in weights if weights.dtypes.get(key) != "F32"), None)
    if wrong is not None:
        raise ConfigError(f"{name}: {wrong!r} must be of 32-bit floats, not {weights.dtypes.get(wrong)}")
    try:
        arrays = {tuple(int(k) if k.isdecimal() else k for k in key.split(".")): weights[key] for key in weights}
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from None
    params = nest(arrays)
    return SingleFile(config, params, header.get(TOKENIZER_KEY, ""))
