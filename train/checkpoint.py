"""Checkpoints with orbax: the only place that writes and reads them.

A run keeps `checkpoints/PHASE/STEP` with the parameters, the optimizer's state, and `meta` (the configuration, the
phase and the number of examples seen, which is all that the position in the data consists of). Saving is asynchronous;
a checkpoint is there when its folder has its final name, so a killed run leaves whole ones only.
"""

import dataclasses
import json
import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh
from orbax.checkpoint import checkpoint_managers

from mom_jax.config import ModelConfig
from mom_jax.fields import ConfigError, from_dict
from mom_jax.model import MoM, with_parameters
from mom_jax.sharding import make_mesh
from train import foreign
from train.config import Config, DataConfig, Phase
from train.data import tokenizer as tokenizers
from train.files import whole_folder, write_whole
from train.memory import return_freed_memory
from train.step import TrainState, abstract_params

CONFIG, FOLDER = "config.json", "checkpoints"
META_VERSION = 2
PIECE = 32 * 2**20  # bytes to have in hand at a time, beside a whole model

# Orbax reports every save at level WARNING or below; a run has its own words for that.
logging.getLogger("absl").setLevel(logging.ERROR)


@dataclasses.dataclass(frozen=True)
class Meta:
    """What a checkpoint says of itself beside its arrays."""

    config: Config
    phase: str
    step: int
    examples_seen: int
    tokenizer: str  # its fingerprint

    @property
    def model(self) -> ModelConfig:
        """The model's configuration, with annealed preferences as strong as they were at this step."""
        return phase_model(self.config, self.phase).at_step(self.step)


def phase_model(config: Config, phase: str) -> ModelConfig:
    """The model that a phase trains."""
    row = next(row for row in config.phases if row.name == phase)
    return config.model.vanilla() if row.model == "vanilla" else config.model


class Checkpoints:
    """The checkpoints of one phase: the latest `keep` and the one with the lowest validation loss stay."""

    def __init__(self, folder: Path, *, keep: int = 1, read_only: bool = False, handlers: Any = None):
        policies = checkpoint_managers.AnyPreservationPolicy(
            [
                checkpoint_managers.LatestN(keep),
                checkpoint_managers.BestN(
                    get_metric_fn=lambda metrics: metrics["loss"],
                    reverse=True,
                    n=1,
                    keep_checkpoints_without_metrics=False,
                ),
            ]
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=None if read_only else policies,
            best_fn=lambda metrics: metrics["loss"],
            best_mode="min",
            create=not read_only,
            read_only=read_only,
            cleanup_tmp_directories=not read_only,
        )
        self.folder = folder
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options, item_handlers=handlers)

    def latest(self) -> int | None:
        return self._manager.latest_step()

    def best(self) -> int | None:
        """The step with the lowest validation loss, or the latest where none was evaluated."""
        best = self._manager.best_step()
        return self.latest() if best is None else best

    def save(self, state: TrainState, meta: Meta, loss: float | None) -> None:
        """Starts to save; `loss` is the validation loss where it was measured at this step."""
        optimizer = ocp.args.StandardSave({"step": state.step, "state": state.opt_state})
        # A loss that is no number must not look like the best.
        metrics = None if loss is None or not math.isfinite(loss) else {"loss": float(loss)}
        self.save_items(meta, metrics, params=ocp.args.StandardSave(state.params), optimizer=optimizer)

    def save_items(self, meta: Meta, metrics: dict[str, float] | None = None, **items: ocp.args.CheckpointArgs) -> None:
        """The same for whatever is to be saved beside `meta`."""
        record = {"version": META_VERSION, **dataclasses.asdict(meta)}
        items["meta"] = ocp.args.JsonSave(record)
        self._manager.save(meta.step, args=ocp.args.Composite(**items), metrics=metrics)

    def restore(self, step: int, like: TrainState) -> TrainState:
        """The state at `step`, with the structure, shapes, types and shardings of `like`."""
        items = {
            "params": ocp.args.StandardRestore(like.params),
            "optimizer": ocp.args.StandardRestore({"step": like.step, "state": like.opt_state}),
        }
        restored = self._manager.restore(step, args=ocp.args.Composite(**items))
        optimizer = restored["optimizer"]
        return TrainState(optimizer["step"], restored["params"], optimizer["state"])

    def restore_params(self, step: int, config: ModelConfig, mesh: Mesh) -> dict[Any, Any]:
        """The parameters at `step` of a model of the given configuration."""
        like = abstract_params(config, mesh)
        return self._manager.restore(step, args=ocp.args.Composite(params=ocp.args.StandardRestore(like)))["params"]

    def restore_arrays(self, step: int, config: ModelConfig) -> dict[Any, Any]:
        """The same as numpy arrays, in little more memory than they take: orbax reads all that it is asked for at once,
        so that it is asked for few large ones at a time, the largest first, while there are few others."""
        leaves, structure = jax.tree.flatten(abstract_params(config))
        arrays: dict[int, np.ndarray] = {}
        for part in _parts([4 * leaf.size for leaf in leaves]):
            asked = [leaf if i in part else ocp.PLACEHOLDER for i, leaf in enumerate(leaves)]
            wanted = jax.tree.unflatten(structure, asked)
            as_arrays = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
            items = ocp.args.Composite(params=ocp.args.PyTreeRestore(wanted, restore_args=as_arrays))
            restored = jax.tree.leaves(self._manager.restore(step, args=items)["params"])
            arrays |= {i: restored[i] for i in part}
            return_freed_memory()
        return jax.tree.unflatten(structure, [arrays[i] for i in range(len(leaves))])

    def meta(self, step: int) -> Meta:
        record = self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
        version = record.pop("version")
        if version != META_VERSION:
            raise ConfigError(f"{self.folder}: checkpoint version {version!r}: this program reads {META_VERSION}")
        return from_dict(Meta, record)

    def wait(self) -> None:
        """Returns when what was saved is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.close()


def _parts(sizes: list[int]) -> Iterator[set[int]]:
    """The indices of arrays of so many bytes, the largest first, together as far as `PIECE` goes."""
    part: set[int] = set()
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        if part and sum(sizes[j] for j in part) + sizes[i] > PIECE:
            yield part
            part = set()
        part.add(i)
    yield part


@dataclasses.dataclass(frozen=True)
class Found:
    """A checkpoint on disk: the run's folder, the phase's, and the step."""

    run: Path
    phase: Path
    step: int

    def __str__(self) -> str:
        return f"{self.phase / str(self.step)}"

    def meta(self) -> Meta:
        return self._open(lambda checkpoints: checkpoints.meta(self.step))

    def params(self, config: ModelConfig, mesh: Mesh | None = None) -> dict[Any, Any]:
        """mesh: where they shall lie, by default on one device."""
        return self._open(lambda checkpoints: checkpoints.restore_params(self.step, config, mesh or make_mesh()))

    def arrays(self, config: ModelConfig) -> dict[Any, Any]:
        return self._open(lambda checkpoints: checkpoints.restore_arrays(self.step, config))

    def _open(self, read: Any) -> Any:
        checkpoints = Checkpoints(self.phase, read_only=True)
        try:
            return read(checkpoints)
        except ConfigError:
            raise
        except Exception as error:  # whatever orbax makes of a damaged folder
            first = (str(error).splitlines() or [""])[0]
            raise ConfigError(f"{self}: the checkpoint cannot be read ({type(error).__name__}: {first})") from error
        finally:
            checkpoints.close()


def find(path: str | Path, *, field: str, best: bool = False) -> Found:
    """The checkpoint that `path` means: a run's folder (its furthest phase), a phase's, or one step's.

    Of a phase the latest step counts, or with `best` the one with the lowest validation loss. Raises ConfigError naming
    `field` where there is none.
    """
    name, path = str(path), Path(path).expanduser().resolve()
    if not path.is_dir():
        raise ConfigError(f"{field}={name!r}: no such folder")
    is_run = (path / CONFIG).is_file()
    if not is_run and path.parent.parent.name == FOLDER and path.name.isdecimal():
        return Found(path.parents[2], path.parent, int(path.name))
    if not is_run and path.parent.name == FOLDER:
        phases, run = [path], path.parents[1]
    else:
        run = path.parent if path.name == FOLDER and not is_run else path
        phases = [run / FOLDER / row.name for row in reversed(read_config(run, field).phases)]
    for phase in phases:
        step = last_step(phase, best=best)
        if step is not None:
            return Found(run, phase, step)
    raise ConfigError(f"{field}={name!r}: has no checkpoint")


def last_step(phase: Path, *, best: bool = False) -> int | None:
    """The latest (or best) step in a phase's folder; None where there is no checkpoint or no folder."""
    if not phase.is_dir():
        return None
    checkpoints = Checkpoints(phase, read_only=True)
    try:
        return checkpoints.best() if best else checkpoints.latest()
    finally:
        checkpoints.close()


def to_json(config: Config) -> bytes:
    """What `read_config` reads."""
    return (json.dumps(dataclasses.asdict(config), indent=1) + "\n").encode()


def read_config(run: Path, field: str) -> Config:
    """The configuration of a run's folder. Raises ConfigError naming `field` where it has none."""
    file = run / CONFIG
    if not file.is_file():
        raise ConfigError(f"{field}={str(run)!r}: is not a run's folder (it has no {CONFIG})")
    try:
        record = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file}: cannot be read ({error})") from None
    return from_dict(Config, record)


def open_model(path: str | Path, *, field: str, best: bool = False) -> foreign.Model:
    """Reads a run's folder, a phase's or one step's, a folder of Hugging Face's GPT-2 or of the authors' code, or a
    single safetensors file of ours. Raises ConfigError naming `field` for what is none of them, or not whole."""
    place = Path(path).expanduser()
    kind = foreign.detect(place, field)
    if kind is not None:
        return foreign.read(place, kind, field)
    found = find(path, field=field, best=best)
    meta = found.meta()
    file = tokenizers.find(found.run)
    tokenizer = None if file is None else tokenizers.load(file, field="tokenizer")
    if tokenizer is not None:
        check_tokenizer(tokenizer.fingerprint, meta, f"tokenizer={str(file)!r}")
    description = f"step {meta.step} of phase {meta.phase} of a run"
    return foreign.Model(meta.model, found.arrays(meta.model), tokenizer, meta.tokenizer, description)


def load(
    path: str | Path, *, best: bool = False, say: Callable[[str], None] = lambda text: None
) -> tuple[MoM, tokenizers.Tokenizer | None]:
    """(model, tokenizer or None) from any format that `open_model` knows; `say` is told which it was."""
    model = open_model(path, field="checkpoint", best=best)
    say(f"{path}: {model.description}")
    return with_parameters(model.config, jax.tree.map(jnp.asarray, model.params)), model.tokenizer


def write_run(
    output: Path, phase: str, config: ModelConfig, params: dict[Any, Any], tokenizer: tokenizers.Tokenizer
) -> None:
    """Writes a run whose only phase has parameters and has not been trained: for `init_from`, `load` and evaluation.

    Raises ConfigError if `output` is there already or cannot be written.
    """
    data = DataConfig(tokenizer=str(output), length=min(DataConfig.length, config.context_length))
    row = Phase(phase, 1)
    experiment = Config(model=config, data=data, phases=(row,), run=str(output))
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


def check_tokenizer(fingerprint: str, meta: Meta, name: str) -> None:
    """Raises ConfigError (about `name`) unless the checkpoint was trained with the tokenizer of this fingerprint."""
    if fingerprint != meta.tokenizer:
        theirs = f"a vocabulary of {meta.model.vocab_size} tokens, fingerprint {meta.tokenizer[:12]}"
        raise ConfigError(
            f"{name}: the checkpoint was trained with another tokenizer ({theirs}; not {fingerprint[:12]})"
        )
