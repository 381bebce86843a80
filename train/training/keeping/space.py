"""Whether a run's checkpoints have room on their disk, before the first step."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
from jax.sharding import Mesh

from mom_jax.fields import ConfigError
from train.checkpoints.locate import FOLDER, last_step
from train.config import Config, Phase
from train.steps.optimizer import make_optimizer
from train.steps.state import abstract_state


def check_space(config: Config, mesh: Mesh, notify: Callable[[str], None]) -> None:
    """Says where a disk may become too small for what the run keeps.

    Raises ConfigError where it certainly is: each phase keeps one checkpoint at least, and one stays until the next is
    whole. Compression, which saves little of trained parameters, is not counted on; nor can a quota be seen.
    """
    run = Path(config.run).expanduser().absolute()
    last = config.phases[-1]
    if last_step(run / FOLDER / last.name) == last.steps:
        return  # all is saved
    sizes = [_size(config, phase, mesh) for phase in config.phases]
    have = _used(run / FOLDER)
    # A checkpoint that is there already needs its room no more, but the next one does.
    needed = max(max(sizes), sum(sizes) + max(sizes) - have)
    each = config.checkpoint.keep + 1  # the latest ones and the best
    wanted = max(needed, each * sum(sizes) + max(sizes) - have)
    place = next(folder for folder in (run, *run.parents) if folder.exists())
    try:
        free = shutil.disk_usage(place).free
    except OSError:
        return  # what cannot be known must not stop a run
    text = f"run={config.run!r}: its checkpoints need {{}} of disk space, {_bytes(free)} are free"
    if free < needed:
        raise ConfigError(text.format(f"at least {_bytes(needed)}"))
    if free < wanted:
        notify(f"{text.format(f'up to {_bytes(wanted)}')}; a checkpoint that cannot be saved is tried again")


def _size(config: Config, phase: Phase, mesh: Mesh) -> int:
    """Bytes of a checkpoint: parameters, moments, step."""
    state = abstract_state(config.model_of(phase.name), make_optimizer(phase.optim, phase.steps), mesh)
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))


def _used(folder: Path) -> int:
    try:
        return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    except OSError:  # being deleted
        return 0


def _bytes(count: float) -> str:
    for unit in ("bytes", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
