"""A run's folder: whose it is, that one process has it, and that its configuration does not change."""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mom_jax.fields import ConfigError
from train.checkpoints.locate import FOLDER
from train.checkpoints.run_config import CONFIG, read_config, to_json
from train.config import Config
from train.files import check_no_links, locked, write_whole
from train.numbers import FOLDER as NUMBERS
from train.reporting.metrics import EVENTS
from train.reporting.routes import FOLDER as ROUTES
from train.training.keeping.saving import SavingFailedError
from train.training.profile import FOLDER as PROFILE

# What may change when a run is resumed: where it lies, how often it reports and saves, and how it computes the same.
FREE = (
    *(
        "mesh",
        "run",
        "evaluate_every",
        "final_batches",
        "checkpoint",
        "analysis",
        "signs",
        "watch",
        "wandb",
        "data.cache",
    ),
    *("model.remat", "model.dispatch", "model.attention_kernel"),
)


# The folders in a run's folder.
PARTS = (FOLDER, NUMBERS, ROUTES, EVENTS, PROFILE, "wandb")


class Busy(ConfigError):
    """Another process is training in the run's folder."""


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """`field: old -> new` for every leaf in which two configurations differ."""
    if dataclasses.is_dataclass(old) and type(old) is type(new):
        pairs = [(f.name, getattr(old, f.name), getattr(new, f.name)) for f in dataclasses.fields(old)]
    elif isinstance(old, tuple) and isinstance(new, tuple) and len(old) == len(new):
        pairs = [(str(i), a, b) for i, (a, b) in enumerate(zip(old, new, strict=True))]
    elif isinstance(old, tuple) and old and dataclasses.is_dataclass(old[0]):
        return [f"{path}: {len(old)} rows -> {len(new)}"]
    else:
        return [] if old == new or path.startswith(FREE) else [f"{path}: {old!r} -> {new!r}"]
    return [line for name, a, b in pairs for line in differences(a, b, f"{path}.{name}" if path else name)]


def check_unchanged(config: Config) -> bool:
    """Whether the run's folder already holds this configuration; raises ConfigError if it holds another one."""
    folder = Path(config.run).expanduser()
    if not folder.exists():
        return False
    if not folder.is_dir():
        raise ConfigError(f"run={config.run!r}: is not a folder")
    phases = (f"{FOLDER}/{phase.name}" for phase in config.phases)
    check_no_links(folder, (*PARTS, *phases), f"run={config.run!r}")
    if not (folder / CONFIG).exists():
        if any(path for path in folder.iterdir() if not path.name.startswith(".")):
            raise ConfigError(f"run={config.run!r}: the folder has other files and no {CONFIG}")
        return False
    old = read_config(folder, "run")
    if config.model.vocab_size == 0:  # whatever the data has, which is known by its tokenizer
        config = config.with_vocabulary(old.model.vocab_size)
    changed = differences(old, config)
    if changed:
        raise ConfigError(
            f"run={config.run!r}: holds a run with another configuration ({'; '.join(changed)}); give this one a "
            "folder of its own, with resume where it is to go on from that run"
        )
    return True


class FolderLostError(SavingFailedError):
    """The run's folder is not any more where training began."""


@dataclasses.dataclass(frozen=True)
class Claim:
    """A run's folder while this process trains in it. identity: the folder's device and number there."""

    folder: Path
    identity: tuple[int, int]

    def check(self) -> None:
        """Raises FolderLostError where another folder, or none, has its name by now: what is written by that name would
        be lost, or get into another run."""
        try:
            same = _identity(self.folder) == self.identity
        except (FileNotFoundError, NotADirectoryError):
            same = False
        if not same:
            lost = "has been moved or removed while it was trained, so nothing more is written"
            raise FolderLostError(f"run={str(self.folder)!r}: {lost}; with --run it goes on from where it is now")


def _identity(folder: Path) -> tuple[int, int]:
    facts = folder.stat()
    return facts.st_dev, facts.st_ino


@contextlib.contextmanager
def claimed(config: Config) -> Iterator[Claim]:
    """The run's folder, made if need be, for this process alone.

    Raises Busy if another process is training in it, ConfigError if it holds another configuration.
    """
    check_unchanged(config)
    folder = Path(config.run).expanduser()
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            held = stack.enter_context(locked(folder / ".lock", f"run={config.run!r}", wait=False))
        except OSError as error:
            raise ConfigError(f"run={config.run!r}: cannot be written ({error.strerror})") from None
        if not held:
            raise Busy(f"run={config.run!r}: another process is training in this folder")
        # Another process may have begun, and ended, since the first look.
        if not check_unchanged(config):
            write_whole(folder / CONFIG, to_json(config))
        yield Claim(folder, _identity(folder))
