"""Models in other formats than a run's: Hugging Face's GPT-2, the authors' code, and our single safetensors files.

Reading tells which it found; arrays are read one by one, so that no more than one model is in memory.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from mom_jax.config import ModelConfig
from mom_jax.fields import ConfigError
from mom_jax.interop import gpt2, official
from train.checkpoints import single_file
from train.checkpoints.weights import SAFETENSORS, check_claim, metadata, open_weights, save_checked
from train.data import tokenizers
from train.files import read_json, to_json, whole_folder, write_whole

CONFIG = "config.json"
# In the header of a folder's weights that we write: the fingerprint of the tokenizer.
TOKENIZER = "mom_jax.tokenizer"
Format = Literal["huggingface", "official", "safetensors"]
DESCRIPTIONS: dict[Format, str] = {
    "huggingface": "a GPT-2 of Hugging Face",
    "official": "a checkpoint of the authors' code",
    "safetensors": "a single file of mom_jax",
}


@dataclasses.dataclass(frozen=True)
class Model:
    """A model in any format. params: nested dictionaries of float32 arrays. tokenizer: the one that lies beside it, if
    any. fingerprint: of the one that it was trained with, empty where that is not known. description: what it was."""

    config: ModelConfig
    params: dict[Any, Any]
    tokenizer: tokenizers.Tokenizer | None
    fingerprint: str
    description: str


def detect(path: Path, field: str) -> Format | None:
    """The format of a file or folder; None for what may be one of our runs. Raises `ConfigError` naming `field` for
    what is none at all."""
    if path.is_file():
        if path.suffix != ".safetensors":
            raise ConfigError(f"{field}={str(path)!r}: must be a folder or a .safetensors file")
        return "safetensors"
    if not (path / CONFIG).is_file():
        return None
    options = _options(path, field)
    if "phases" in options:
        return None
    return "official" if {"num_ffn", "routing_top_k", "router_type"} & options.keys() else "huggingface"


def is_run(path: str | Path, field: str) -> bool:
    """Whether a path is of a run of ours, or of nothing at all."""
    return detect(Path(path).expanduser(), field) is None


def read(path: Path, found: Format, field: str) -> Model:
    """Reads a model in format `found`. Raises `ConfigError` naming `field` for whatever is missing or does not fit."""
    if found == "safetensors":
        whole = single_file.load(path, field)
        tokenizer = _tokenizer(path.parent, field)
        return Model(whole.config, whole.params, tokenizer, whole.tokenizer, DESCRIPTIONS[found])
    options, weights = _options(path, field), open_weights(path, field)
    try:
        if found == "huggingface":
            config = gpt2.config_from_gpt2(options)
            check_claim(config, weights.shapes)
            params = gpt2.params_from_gpt2(weights, options, weights.shapes)
        else:
            config = official.config_from_official(options)
            check_claim(config, weights.shapes)
            params = official.params_from_official(weights, config, weights.shapes)
    except ConfigError as error:
        raise ConfigError(f"{field}={str(path)!r}: {error}") from None
    file = path / SAFETENSORS
    fingerprint = metadata(file, field).get(TOKENIZER, "") if file.is_file() else ""
    return Model(config, params, _tokenizer(path, field), fingerprint, DESCRIPTIONS[found])


def _tokenizer(folder: Path, field: str) -> tokenizers.Tokenizer | None:
    file = tokenizers.find(folder)
    return None if file is None else tokenizers.load(file, field=f"{field}, tokenizer")


def _options(folder: Path, field: str) -> dict[str, Any]:
    options = read_json(folder / CONFIG, f"{field}: {folder / CONFIG}", old=True)
    if not isinstance(options, dict):
        raise ConfigError(f"{field}: {folder / CONFIG} must be a JSON object")
    return options


def write_folder(
    output: Path,
    found: Literal["huggingface", "official"],
    config: ModelConfig,
    params: Mapping[Any, Any],
    tokenizer: tokenizers.Tokenizer | None,
) -> None:
    """Writes a folder of Hugging Face's or the authors' kind: config.json, model.safetensors and the tokenizer, all or
    nothing. Raises `ConfigError` for a model that the format cannot hold."""
    if found == "huggingface":
        options, arrays = gpt2.config_to_gpt2(config), gpt2.params_to_gpt2(params, config)
    else:
        options, arrays = official.config_to_official(config), official.params_to_official(params, config)
        del arrays["lm_head.weight"]  # tied: a file holds an array once
    if tokenizer is not None and tokenizer.eos_id >= 0:
        options |= {"bos_token_id": tokenizer.eos_id, "eos_token_id": tokenizer.eos_id}
    with whole_folder(output) as partial:
        fingerprint = {} if tokenizer is None else {TOKENIZER: tokenizer.fingerprint}
        save_checked(partial / SAFETENSORS, arrays, {"format": "pt"} | fingerprint)
        write_whole(partial / CONFIG, to_json(options, indent=2))
        if tokenizer is not None:
            tokenizer.save(partial)
