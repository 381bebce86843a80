"""Which checkpoint a path means."""

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from mom_jax.config import ModelConfig
from mom_jax.fields import ConfigError
from mom_jax.sharding import make_mesh
from train.checkpoints import manifest, steps
from train.checkpoints.manager import Checkpoints, Meta
from train.checkpoints.run_config import CONFIG, read_config
from train.config import Config, DataConfig, Phase
from train.steps.numbers.finite import check_finite

# In a run's folder; below it are the phases' folders, and below each the steps'.
FOLDER = "checkpoints"

_said: set[str] = set()  # the checkpoints without checksums of which the user was told


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
        """mesh: where they shall lie, by default on one device. Raises ConfigError where one is no number."""
        params = self._open(lambda checkpoints: checkpoints.restore_params(self.step, config, mesh or make_mesh()))
        return check_finite(params, f"{self}")

    def arrays(self, config: ModelConfig) -> dict[Any, Any]:
        """The same on the host."""
        return check_finite(self._open(lambda checkpoints: checkpoints.restore_arrays(self.step, config)), f"{self}")

    def _open(self, read: Any) -> Any:
        checkpoints = Checkpoints(self.phase, read_only=True)
        try:
            return read(checkpoints)
        except (ConfigError, OSError):
            if steps.there(self.phase, self.step):
                raise
            why = "was removed while it was read, as training does with those that it needs no more"
            raise ConfigError(f"{self}: {why}; the same command takes a newer one") from None
        finally:
            checkpoints.close()


def find(path: str | Path, *, field: str, best: bool = False) -> Found:
    """The checkpoint that `path` means: a run's folder (its furthest phase), a phase's, or one step's.

    Of a phase the latest step counts, or with `best` the one with the lowest validation loss. All its files are
    compared with their checksums. Raises ConfigError naming `field` where there is none, or it is damaged: no other is
    taken in its place, but the one to name instead is said.
    """
    name, path = str(path), Path(path).expanduser().resolve()
    if not path.is_dir():
        raise ConfigError(f"{field}={name!r}: no such folder")
    is_run = (path / CONFIG).is_file()
    if not is_run and path.parent.parent.name == FOLDER and path.name.isdecimal():
        return _whole(Found(path.parents[2], path.parent, int(path.name)), field, name, best)
    if not is_run and path.parent.name == FOLDER:
        phases, run = [path], path.parents[1]
    else:
        run = path.parent if path.name == FOLDER and not is_run else path
        phases = [run / FOLDER / row.name for row in reversed(read_config(run, field).phases)]
    for phase in phases:
        while (step := last_step(phase, best=best)) is not None:
            # Training deletes what it needs no more, perhaps while it is read; then there is a newer one.
            if steps.problem(phase, step) is None or steps.there(phase, step):
                return _whole(Found(run, phase, step), field, name, best)
    raise ConfigError(f"{field}={name!r}: has no checkpoint")


def _whole(found: Found, field: str, name: str, best: bool) -> Found:
    """`found`, unless it is damaged."""
    wrong = steps.problem(found.phase, found.step)
    if wrong is not None:
        others = (step for step in steps.ordered(found.phase, best=best) if step != found.step)
        good = next((step for step in others if steps.problem(found.phase, step) is None), None)
        instead = f"; {found.phase / str(good)} is whole" if good is not None else ""
        raise ConfigError(f"{field}={name!r}: the checkpoint {found} is damaged ({wrong}){instead}")
    if not manifest.sealed(found.phase / str(found.step)) and str(found) not in _said and jax.process_index() == 0:
        _said.add(str(found))
        print(f"{found}: has no checksums, so damage may go unnoticed", file=sys.stderr, flush=True)
    return found


def last_step(phase: Path, *, best: bool = False) -> int | None:
    """The latest (or best) step in a phase's folder; None where there is no checkpoint or no folder."""
    return next(iter(steps.ordered(phase, best=best)), None)


def tell_data(found: Found, data: DataConfig, notify: Callable[[str], None]) -> None:
    """Says what of the data that a checkpoint names is not the default, before anything there is read or written: a
    stranger's checkpoint may name any file and folder."""
    if named := named_data(data):
        notify(f"{found} names the data: {named}")


def named_data(data: DataConfig) -> str:
    """The files and folders that a configuration of the data names, as far as they are not the defaults."""
    named = {name: getattr(data, name) for name in ("source", "tokenizer", "cache")}
    return ", ".join(f"{name}={value!r}" for name, value in named.items() if value != getattr(DataConfig, name))


def check_tokenizer(fingerprint: str, meta: Meta, name: str) -> None:
    """Raises ConfigError (about `name`) unless the checkpoint was trained with the tokenizer of this fingerprint."""
    if fingerprint != meta.tokenizer:
        theirs = f"a vocabulary of {meta.model.vocab_size} tokens, fingerprint {meta.tokenizer[:12]}"
        raise ConfigError(
            f"{name}: the checkpoint was trained with another tokenizer ({theirs}; not {fingerprint[:12]})"
        )


def source_of(config: Config, phase: Phase, name: str) -> str:
    """The folder that `previous`, or a path, means for a phase."""
    if name != "previous":
        return name
    names = [row.name for row in config.phases]
    return str(Path(config.run) / FOLDER / names[names.index(phase.name) - 1])
