"""Weights & Biases beside TensorBoard: the same numbers under the same names. What fails there stops no training."""

import contextlib
import dataclasses
import importlib.util
import secrets
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mom_jax.fields import ConfigError, require
from train.config import Config
from train.files import read_json, to_json, write_whole
from train.numbers import for_json
from train.reporting.metrics import MetricsLog, scalars
from train.tracking import WandbConfig

FILE = "wandb.json"  # in the run's folder: which run it is there
STEP = "step"  # counted across phases, as TensorBoard's
# Seconds that connecting, a login on the terminal, and the last upload may take.
CONNECT, LOGIN, FINISH = 60, 60, 120


def check_installed(config: WandbConfig) -> None:
    """Raises `ConfigError` where it is wanted and the package is missing."""
    installed = config.mode == "off" or importlib.util.find_spec("wandb") is not None
    require(installed, "wandb.mode", config.mode, "needs wandb, which is not installed: pip install wandb")


class WandbLog:
    """Sends what `log` is given to Weights & Biases while it is open; does nothing, and imports nothing, where that is
    off.

    offsets: by phase, the steps of all phases before it. notify: is told where the run is to be seen, and once if it
    fails.
    """

    def __init__(self, config: Config, log: MetricsLog, offsets: dict[str, int], notify: Callable[[str], None]) -> None:
        self._config, self._log, self._offsets, self._notify = config, log, offsets, notify
        self._run: Any = None
        self._failed = False

    def __enter__(self) -> "WandbLog":
        if self._config.wandb.mode != "off":
            self._start()
            self._log.listeners.append(self._see)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        with contextlib.suppress(ValueError):
            self._log.listeners.remove(self._see)
        if self._run is not None:
            with self._failing("the last numbers may be missing there"):
                self._run.finish(exit_code=0 if kind is None else 1)
            self._run = None
        if self._failed:
            self._forget()

    @staticmethod
    def _forget() -> None:
        """Lets go of the library's process: if that is dead, the library would else complain of it as ours ends."""
        with contextlib.suppress(Exception):
            import wandb

            wandb.teardown()

    def _start(self) -> None:
        online = self._config.wandb.mode == "online"
        if online:
            with self._failing("going on offline"):
                self._run = self._begun("online")
                self._notify(f"Weights & Biases: {self._run.url}")
        if self._run is None:
            with self._failing("nothing more is sent there"):
                self._run = self._begun("offline")
                folder = Path(self._run.dir).parent
                self._notify(f"Weights & Biases: offline, in {folder}; to upload it: wandb sync {folder}")

    def _begun(self, mode: Any) -> Any:
        import wandb

        config, folder = self._config.wandb, Path(self._config.run).expanduser()
        settings = wandb.Settings(
            silent=True, console="off", init_timeout=CONNECT, login_timeout=LOGIN, finish_timeout=FINISH,
            disable_git=True, disable_code=True,
        )  # fmt: skip
        run = wandb.init(
            project=config.project, entity=config.entity, name=config.name or folder.resolve().name,
            group=config.group, tags=config.tags, dir=str(folder), id=_identity(folder), resume="allow", mode=mode,
            config=for_json(dataclasses.asdict(self._config)), settings=settings, reinit="create_new",
        )  # fmt: skip
        # W&B's own count of steps cannot go back, ours does when a run goes on from its last checkpoint.
        run.define_metric(STEP)
        run.define_metric("*", step_metric=STEP)
        return run

    def _see(self, record: dict[str, Any]) -> None:
        found = scalars(record)
        if self._run is None or not found:
            return
        with self._failing("nothing more is sent there"):
            self._run.log({**found, STEP: self._offsets.get(str(record.get("phase")), 0) + record["step"]})
            return
        self._run = None

    @contextlib.contextmanager
    def _failing(self, then: str) -> Iterator[None]:
        """What the library raises is told, and forgotten."""
        try:
            yield
        except Exception as error:
            self._failed = True
            why = " ".join(str(error).split())[:300]
            self._notify(f"Weights & Biases has failed ({type(error).__name__}: {why}); {then}")


def _identity(folder: Path) -> str:
    """The id that the run has there, always the same."""
    path = folder / FILE
    if path.exists():
        with contextlib.suppress(ConfigError, KeyError, TypeError):
            known = read_json(path, str(path), 2**16)["id"]
            if isinstance(known, str) and known.isalnum():
                return known
    identity = secrets.token_hex(8)
    write_whole(path, to_json({"id": identity}))
    return identity
