"""`--dry-run`: what a configuration would need and read, without training."""

import contextlib
import dataclasses

from rich.console import Console
from rich.table import Table

from mom_jax.analysis.cost import parameter_count, train_flops_per_token, training_memory_bytes
from train.checkpoints.teacher import teacher_model
from train.config import Config
from train.data.pipeline import TrainingData
from train.steps.compiled import compiled_memory, trace_step
from train.steps.state import optimizer_bytes
from train.training import processes
from train.training.preparation import make_ready

PREVIEW_ROWS, PREVIEW_CHARACTERS = 3, 240


def dry_run(config: Config) -> None:
    """Prints, per phase, parameters, memory and FLOPs, and the first batch as text. Writes nothing to the run's folder.

    Raises ConfigError for whatever training would refuse.
    """
    console = Console(highlight=False, quiet=not processes.is_first())
    config, mesh, prepared = make_ready(config, console)
    data = config.data
    for phase in config.phases:
        model = config.model_of(phase.name)
        table = Table(title=f"{phase.name}: {phase.steps:,} steps", title_justify="left", show_header=False)
        counts = dataclasses.asdict(parameter_count(model))
        for name, count in counts.items():
            label = "parameters used by a token" if name == "active" else f"parameters, {name}"
            table.add_row(label, f"{count:,}")
        flops = train_flops_per_token(model, data.length)
        table.add_row("training FLOPs per token, nothing skipped", f"{flops:.3g}")
        micro = data.batch_size // phase.optim.accumulation // mesh.size
        moments = optimizer_bytes(model, phase.optim, phase.steps)
        for name, size in training_memory_bytes(model, micro, data.length, optimizer_bytes=moments).items():
            table.add_row(f"memory estimate with whole parameters, {name}", f"{size / 2**20:,.1f} MiB")
        size = compiled_memory(
            trace_step(config, phase, mesh, teacher_model(config, phase)).lower().compile(), mesh
        ).peak
        table.add_row(f"memory of the compiled step, each of {mesh.size} devices", f"{size / 2**20:,.1f} MiB")
        console.print(table)
    training = TrainingData(prepared, data)
    held_out = sum(cache.num_tokens for cache in prepared.validation)
    for line in training.describe():
        console.print(line, markup=False, soft_wrap=True)
    console.print(f"held out: {held_out:,} tokens")
    with contextlib.closing(training.batches(examples_seen=0)) as batches:
        for i, row in enumerate(next(batches)["tokens"][:PREVIEW_ROWS]):
            text = prepared.tokenizer.decode(row.tolist())
            console.print(f"first batch, row {i}: {text[:PREVIEW_CHARACTERS]!r}", markup=False, soft_wrap=True)
