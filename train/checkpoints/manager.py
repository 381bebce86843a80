"""Checkpoints with orbax: the only place that writes and reads them.

A run keeps `checkpoints/PHASE/STEP` with the parameters, the optimizer's state, and `meta` (the configuration, the
phase and the number of examples seen, which is all that the position in the data consists of). Saving is asynchronous;
a checkpoint is there when its folder has its final name, so a killed run leaves whole ones only. Then, still beside the
training, it gets its checksums, and only then the ones before it go that need not stay."""

import contextlib
import dataclasses
import logging
import math
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from mom_jax.config import ModelConfig
from mom_jax.fields import ConfigError, from_dict
from train.checkpoints import manifest, steps
from train.checkpoints.weights import check_claim
from train.config import Config
from train.numbers import Remembered
from train.reporting.metrics import LogMark
from train.steps.memory import return_freed_memory
from train.steps.optimizer.names import path_name
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
    teacher: str | None = None  # `PHASE/STEP` in the run that the phase's `distill` names
    watch: Remembered = Remembered()  # what is known of the numbers up to here
    log: LogMark = LogMark()  # what the run's log was when this was saved

    @property
    def model(self) -> ModelConfig:
        """The model's configuration, with annealed preferences as strong as they were at this step."""
        return self.config.model_of(self.phase).at_step(self.step)


class Checkpoints:
    """The checkpoints of one phase: the latest `keep` and the one with the lowest validation loss stay."""

    def __init__(self, folder: Path, *, keep: int = 1, read_only: bool = False, handlers: Any = None):
        self.folder, self.keep = folder, keep
        self._read_only, self._handlers = read_only, handlers
        self._completing: threading.Thread | None = None
        self._failure: BaseException | None = None
        if not read_only and jax.process_index() == 0:
            steps.remove_leftovers(folder)
        self._manager = self._open()

    def _open(self) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(
            best_fn=lambda metrics: metrics["loss"],  # without which no losses would be stored
            best_mode="min",
            create=not self._read_only,
            read_only=self._read_only,
            cleanup_tmp_directories=not self._read_only,
            async_options=ocp.AsyncOptions(barrier_sync_fn=_barrier()) if jax.process_count() > 1 else None,
        )
        return ocp.CheckpointManager(self.folder.absolute(), options=options, item_handlers=self._handlers)

    def latest(self) -> int | None:
        return next(iter(steps.ordered(self.folder)), None)

    def best(self) -> int | None:
        """The step with the lowest validation loss, or the latest where none was evaluated."""
        return next(iter(steps.ordered(self.folder, best=True)), None)

    def steps(self) -> list[int]:
        """All that are there, in order."""
        return steps.steps(self.folder)

    def remove(self, step: int) -> None:
        """Deletes one, so that its step may be saved again; all processes do."""
        self.wait()
        if jax.process_index() == 0:
            steps.remove(self.folder, step)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"{self.folder.name}, step {step} removed")
        self._manager.reload()

    def save(self, state: TrainState, meta: Meta, loss: float | None) -> None:
        """Starts to save; `loss` is the validation loss where it was measured at this step."""
        optimizer = ocp.args.StandardSave({"step": state.step, "state": state.opt_state})
        # A loss that is no number must not look like the best.
        metrics = None if loss is None or not math.isfinite(loss) else {"loss": float(loss)}
        self.save_items(meta, metrics, params=ocp.args.StandardSave(state.params), optimizer=optimizer)

    def save_items(self, meta: Meta, metrics: dict[str, float] | None = None, **items: ocp.args.CheckpointArgs) -> None:
        """The same for whatever is to be saved beside `meta`. Raises what kept the one before from being saved."""
        self.wait()
        record = {"version": META_VERSION, **dataclasses.asdict(meta)}
        items["meta"] = ocp.args.JsonSave(record)
        if meta.step not in steps.steps(self.folder):  # else it was saved before, and its checksums were not
            self._manager.save(meta.step, args=ocp.args.Composite(**items), metrics=metrics)
        self._beside(lambda: self._complete(meta.step))

    def _complete(self, step: int) -> None:
        """What follows when orbax has saved a checkpoint: its checksums, and the end of those that it replaces."""
        self._manager.wait_until_finished()
        if jax.process_index() == 0:  # orbax has waited for the other processes
            manifest.seal(self.folder / str(step))
            for old in steps.superfluous(self.folder, self.keep):
                steps.remove(self.folder, old)

    def seal(self, step: int) -> None:
        """Gives a checkpoint checksums, beside the training, where it has none. A failure is that of a save."""
        if not manifest.sealed(self.folder / str(step)) and jax.process_index() == 0:
            self._beside(lambda: manifest.seal(self.folder / str(step)))

    def _beside(self, work: Callable[[], object]) -> None:
        """Does what completes a checkpoint in a thread of its own."""

        def work_and_tell() -> None:
            try:
                work()
            except BaseException as error:  # told to whoever asks or waits
                self._failure = error

        self._completing = threading.Thread(target=work_and_tell, name="checksums", daemon=True)
        self._completing.start()

    def failure(self) -> BaseException | None:
        """What kept the last save from its end, as far as that is known yet."""
        return None if self._completing is None or self._completing.is_alive() else self._failure

    def reset(self) -> None:
        """Forgets a save that failed, and deletes what there is of it."""
        self.close()
        self._completing = self._failure = None
        self._manager = self._open()

    def restore(self, step: int, like: TrainState) -> TrainState:
        """The state at `step`, with the structure, shapes, types and shardings of `like`."""
        items = {
            "params": ocp.args.StandardRestore(like.params),
            "optimizer": ocp.args.StandardRestore({"step": like.step, "state": like.opt_state}),
        }
        with self._reading(step):
            restored = self._manager.restore(step, args=ocp.args.Composite(**items))
            optimizer = restored["optimizer"]
            return TrainState(optimizer["step"], restored["params"], optimizer["state"])

    def restore_params(self, step: int, config: ModelConfig, mesh: Mesh) -> dict[Any, Any]:
        """The parameters at `step` of a model of the given configuration."""
        self._check_claim(step, config)
        items = ocp.args.Composite(params=ocp.args.StandardRestore(abstract_params(config, mesh)))
        with self._reading(step):
            return self._manager.restore(step, args=items)["params"]

    def restore_arrays(self, step: int, config: ModelConfig) -> dict[Any, Any]:
        """The same as numpy arrays, in little more memory than they take: orbax reads all that it is asked for at once,
        so that it is asked for few large ones at a time, the largest first, while there are few others."""
        self._check_claim(step, config)
        leaves, structure = jax.tree.flatten(abstract_params(config))
        arrays: dict[int, np.ndarray] = {}
        for part in _parts([4 * leaf.size for leaf in leaves]):
            asked = [leaf if i in part else ocp.PLACEHOLDER for i, leaf in enumerate(leaves)]
            wanted = jax.tree.unflatten(structure, asked)
            as_arrays = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
            items = ocp.args.Composite(params=ocp.args.PyTreeRestore(wanted, restore_args=as_arrays))
            with self._reading(step):
                restored = jax.tree.leaves(self._manager.restore(step, args=items)["params"])
            arrays |= {i: restored[i] for i in part}
            return_freed_memory()
        return jax.tree.unflatten(structure, [arrays[i] for i in range(len(leaves))])

    def _check_claim(self, step: int, config: ModelConfig) -> None:
        """Raises ConfigError where the arrays on disk are not those of the configuration; nothing is allocated."""
        place = self.folder.absolute() / str(step)
        with self._reading(step):
            tree = ocp.PyTreeCheckpointHandler().metadata(place / "params").tree
            found = jax.tree.leaves(tree, is_leaf=lambda leaf: hasattr(leaf, "shape"))
            have = {leaf.name: tuple(leaf.shape) for leaf in found}
        try:
            check_claim(config, have)
        except ConfigError as error:
            raise ConfigError(f"{place}: {error}") from None
        for path, leaf in jax.tree_util.tree_leaves_with_path(abstract_params(config)):
            name = path_name(path).replace("/", ".")
            if have.get(name) != leaf.shape:
                is_there = f"has the shape {have[name]}" if name in have else "is missing"
                raise ConfigError(f"{place}: its configuration has {name} of shape {leaf.shape}, which {is_there}")

    @contextlib.contextmanager
    def _reading(self, step: int) -> Iterator[None]:
        """Raises ConfigError for whatever orbax makes of a damaged folder."""
        try:
            yield
        except ConfigError:
            raise
        except Exception as error:
            first = (str(error).splitlines() or [""])[0]
            why = f"the checkpoint cannot be read ({type(error).__name__}: {first})"
            raise ConfigError(f"{self.folder / str(step)}: {why}") from error

    def meta(self, step: int) -> Meta:
        with self._reading(step):
            record = self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
            version = record.pop("version")
        if version != META_VERSION:
            raise ConfigError(f"{self.folder}: checkpoint version {version!r}: this program reads {META_VERSION}")
        return from_dict(Meta, record)

    def wait(self) -> None:
        """Returns when what was saved is on disk with its checksums. Raises what kept it from that."""
        if self._completing is not None:
            self._completing.join()
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """Waits too, and raises nothing: `wait` does."""
        if self._completing is not None:
            self._completing.join()
        with contextlib.suppress(Exception):
            self._manager.close()


def _barrier() -> Callable[..., None]:
    """Orbax's barrier of all processes, for its threads; whoever comes with an error does not wait.

    Of a save that failed in one process orbax tells nobody: that process would wait for the others to end the save, and
    these for it to write its part, 20 minutes long.
    """
    wait = ocp.multihost.get_barrier_sync_fn()

    def barrier(*, key: str, timeout_ms: int) -> None:
        error = sys.exception()  # where orbax waits in a `finally`
        if error is not None:
            raise error
        wait(key=key, timeout_ms=timeout_ms)

    return barrier


def _parts(sizes: list[int]) -> Iterator[set[int]]:
    """The indices of arrays of so many bytes, the largest first, together as far as `PIECE` goes."""
    part: set[int] = set()
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        if part and sum(sizes[j] for j in part) + sizes[i] > PIECE:
            yield part
            part = set()
        part.add(i)
    yield part
