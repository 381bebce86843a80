"""Models out of checkpoints of any format, and a run's folder made of a model."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from mom_jax.config import ModelConfig
from mom_jax.fields import ConfigError, require
from mom_jax.model import MoM, with_parameters
from train.checkpoints import formats
from train.checkpoints.locate import FOLDER, Found, check_tokenizer, find
from train.checkpoints.manager import PIECE, Checkpoints, Meta
from train.checkpoints.run_config import CONFIG, to_json
from train.config import Config, DataConfig, Phase
from train.data import tokenizers
from train.data.tokenizers.token_ids import IdsTokenizer
from train.files import whole_folder, write_whole


def open_model(path: str | Path, *, field: str, best: bool = False) -> formats.Model:
    """Reads a run's folder, a phase's or one step's, a folder of Hugging Face's GPT-2 or of the authors' code, or a
    single safetensors file of ours. Raises ConfigError naming `field` for what is none of them, or not whole."""
    place = Path(path).expanduser()
    kind = formats.detect(place, field)
    if kind is not None:
        return formats.read(place, kind, field)
    found = find(path, field=field, best=best)
    meta = found.meta()
    return dataclasses.replace(described(found, meta), params=found.arrays(meta.model))


def described(found: Found, meta: Meta) -> formats.Model:
    """A run's model without its parameters."""
    file = tokenizers.find(found.run)
    tokenizer = None if file is None else tokenizers.load(file, field="tokenizer")
    if tokenizer is not None:
        check_tokenizer(tokenizer.fingerprint, meta, f"tokenizer={str(file)!r}")
    description = f"step {meta.step} of phase {meta.phase} of a run"
    return formats.Model(meta.model, {}, tokenizer, meta.tokenizer, description)


def _check_beside(model: formats.Model, name: str) -> None:
    """Raises ConfigError where the tokenizer beside a model is not the one it was trained with."""
    if model.tokenizer is not None and model.fingerprint not in ("", model.tokenizer.fingerprint):
        raise ConfigError(f"{name}: the tokenizer beside it is not the one the model was trained with")


def encoding_tokenizer(checkpoint: str, model: formats.Model, path: str | None) -> tokenizers.Tokenizer:
    """The tokenizer that encodes texts for a model: the one beside it, or of the file or folder `path`.

    Raises ConfigError naming `checkpoint` or `tokenizer` where there is none, or another than the model's.
    """
    tokenizer = model.tokenizer
    name = f"checkpoint={checkpoint!r}"
    if path is None:
        _check_beside(model, name)
    else:
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
    return tokenizer


def load(
    path: str | Path,
    *,
    best: bool = False,
    notify: Callable[[str], None] | None = None,
    say: Callable[[str], None] | None = None,
) -> tuple[MoM, tokenizers.Tokenizer | None]:
    """(model, tokenizer or None) from any format that `open_model` knows; `notify` is told which it was.

    best: of a run's phase take the step with the lowest validation loss, not the latest. say: an older name of
    `notify`. Raises ConfigError naming `checkpoint` for what cannot be read.
    """
    model = open_model(path, field="checkpoint", best=best)
    _check_beside(model, f"checkpoint={str(path)!r}")
    notify = notify or say
    if notify is not None:
        notify(f"{path}: {model.description}")
    return with_parameters(model.config, jax.tree.map(jnp.asarray, model.params)), model.tokenizer


def write_run(
    output: Path,
    phase: str,
    config: ModelConfig,
    params: dict[Any, Any],
    tokenizer: tokenizers.Tokenizer,
    origin: Config | None = None,
) -> None:
    """Writes a run whose only phase has parameters and has not been trained: for `init_from`, `load` and evaluation.

    origin: the experiment of the run that it was made of, whose data and settings it keeps. Raises ConfigError if
    `output` is there already or cannot be written.
    """
    if origin is None:
        origin = Config(data=DataConfig(tokenizer=str(output), length=min(DataConfig.length, config.context_length)))
    config = dataclasses.replace(config, exchange_room=ModelConfig.exchange_room)  # the mesh sets it
    experiment = dataclasses.replace(origin, model=config, phases=(Phase(phase, 1),), run=str(output), resume=None)
    with whole_folder(output) as partial:
        tokenizer.save(partial)
        write_whole(partial / CONFIG, to_json(experiment))
        # Orbax would copy all arrays on the host, and hold what it compresses until it has 2 GB of it.
        own = ocp.type_handlers.NumpyHandler(deepcopy_host_arrays=False)
        handler = ocp.PyTreeCheckpointHandler(
            type_handler_registry=ocp.type_handlers.create_type_handler_registry((np.ndarray, own))
        )
        pieces = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=PIECE), params)
        arrays = jax.tree.map(np.asarray, params)
        saved = ocp.args.PyTreeSave(arrays, save_args=pieces, ocdbt_target_data_file_size=2 * PIECE)
        checkpoints = Checkpoints(
            partial / FOLDER / phase, handlers={"params": handler, "meta": ocp.JsonCheckpointHandler()}
        )
        try:
            checkpoints.save_items(Meta(experiment, phase, 0, 0, tokenizer.fingerprint), params=saved)
            checkpoints.wait()
        finally:
            checkpoints.close()
