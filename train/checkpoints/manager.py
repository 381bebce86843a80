"""Checkpoints with orbax: the only place that writes and reads them.

A run keeps `checkpoints/PHASE/STEP` with the parameters, the optimizer's state, and `meta` (the configuration, the
phase and the number of examples seen, which is all that the position in the data consists of). Saving is asynchronous;
a checkpoint is there when its folder has its final name, so a killed run leaves whole ones only."""

import dataclasses
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh
from orbax.checkpoint import checkpoint_managers

from mom_jax.config import ModelConfig
from mom_jax.fields import ConfigError, from_dict
from train.config import Config
from train.numbers import Remembered
from train.steps.memory import return_freed_memory
from train.steps.state import TrainState, abstract_params

# Orbax reports every save at level WARNING or below; a run has its own words for that.
logging.getLogger("absl").setLevel(logging.ERROR)

META_VERSION = 2


PIECE = 32 * 2**20  # bytes to have in hand at a time, beside a whole model


@dataclasses.dataclass(frozen=True)
class Meta:
    """What a checkpoint says of itself beside its arrays."""

    config: Config
    phase: str
    step: int
    examples_seen: int
    tokenizer: str  # its fingerprint
    watch: Remembered = Remembered()  # what is known of the numbers up to here

    @property
    def model(self) -> ModelConfig:
        """The model's configuration, with annealed preferences as strong as they were at this step."""
        return self.config.model_of(self.phase).at_step(self.step)


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

    def steps(self) -> list[int]:
        """All that are there."""
        return list(self._manager.all_steps())

    def remove(self, step: int) -> None:
        """Deletes one; all processes do."""
        self._manager.delete(step)

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
