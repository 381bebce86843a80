"""What a run needs before its folder is touched: devices, data, and a configuration that can be trained."""

from jax.sharding import Mesh
from rich.console import Console

from mom_jax.sharding import make_mesh
from train.checkpoints.teacher import check_teacher
from train.config import Config
from train.data.prepared import Prepared, prepare
from train.reporting.services.wandb_log import check_installed
from train.steps.compiled import check_devices
from train.training.context import Context
from train.training.initial_state import check_sources
from train.training.keeping.space import check_space
from train.training.run import check_unchanged


def make_ready(config: Config, console: Console) -> tuple[Config, Mesh, Prepared]:
    """The configuration with the data's vocabulary, the devices and the data of a run. Raises ConfigError for whatever
    cannot be trained; the run's folder is not touched."""
    check_installed(config.wandb)
    mesh = make_mesh(config.mesh)
    check_devices(config, mesh)
    check_unchanged(config)

    def notify(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    prepared = prepare(config.data, notify)
    config = config.with_vocabulary(prepared.tokenizer.vocab_size)
    check_sources(config, prepared.tokenizer.fingerprint)
    for phase in config.phases:
        check_teacher(config, phase, prepared.tokenizer.fingerprint)
    check_space(config, mesh, notify)
    return config, mesh, prepared


def record_left_out(context: Context) -> None:
    """Writes to the log how many broken documents the data was prepared without, unless it says so already."""
    prepared, phase = context.prepared, context.config.phases[0].name
    left_out = {name: cache.left_out for name, cache in zip(prepared.names, prepared.train, strict=True)}
    known = {name: kinds for name, kinds in left_out.items() if kinds}
    if known and not any(record.get("kind") == "data" for record in context.log.records(phase)):
        context.log.write({"kind": "data", "phase": phase, "step": 0, "left_out": known})
