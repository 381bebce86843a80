"""What the phases of a run share."""

from collections.abc import Callable
from pathlib import Path

from jax.sharding import Mesh
from rich.console import Console

from train.checkpoints.locate import FOLDER
from train.checkpoints.manager import Checkpoints
from train.config import Config, Phase
from train.data.pipeline import TrainingData
from train.data.prepared import Prepared
from train.reporting import metrics
from train.reporting.throughput import mesh_peak
from train.steps.state import TrainState
from train.training import processes
from train.training.profile import Profile
from train.training.validation import Evaluation, validate


class Context:
    """A run's configuration, folder, data and devices, its log, and the signal that may stop it.

    debug_checks: whether every step's values are checked. guard: to call before files are written by the folder's name;
    raises FolderLostError. peak: FLOP/s of all devices together. offsets: by phase, the steps of all phases before it.
    """

    def __init__(
        self,
        config: Config,
        prepared: Prepared,
        log: metrics.MetricsLog,
        console: Console,
        stop: processes.Stop,
        profile: Profile | None,
        mesh: Mesh,
        debug_checks: bool = False,
        guard: Callable[[], None] = lambda: None,
    ):
        self.config, self.prepared, self.log, self.mesh = config, prepared, log, mesh
        self.console, self.stop, self.profile, self.debug_checks = console, stop, profile, debug_checks
        self.guard = guard
        self.run = Path(config.run).expanduser()
        self.peak = mesh_peak(config.model.dtype, mesh)
        self.data = TrainingData(prepared, config.data)
        self.offsets = config.offsets

    def notify(self, text: str) -> None:
        """Tells the user, on the process that has a console."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def checkpoints(self, phase: Phase) -> Checkpoints:
        self.guard()
        return Checkpoints(self.run / FOLDER / phase.name, keep=self.config.checkpoint.keep)

    def validate(self, phase: Phase, state: TrainState, limit: int) -> Evaluation:
        model, step = self.config.model_of(phase.name), int(state.step)
        return validate(state.params, model, self.prepared, self.config.data, step=step, limit=limit, mesh=self.mesh)
