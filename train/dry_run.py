"""`--dry-run`: what a configuration would need and read, without training."""

import dataclasses

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from mom_jax.analysis.cost import parameter_count, train_flops_per_token, training_memory_bytes
from train import checkpoint
from train.config import Config, Phase
from train.data.cache import prepare
from train.data.pipeline import num_windows, train_batches
from train.initialise import check_sources
from train.loop import check_vocabulary
from train.optim import make_optimizer
from train.run import check_unchanged
from train.step import init_state, jit_train_step

PREVIEW_ROWS, PREVIEW_CHARACTERS = 3, 240


def dry_run(config: Config) -> None:
    """Prints, per phase, parameters, memory and FLOPs, and the first batch as text. Writes nothing to the run's folder.

    Raises ConfigError for whatever training would refuse.
    """
    console = Console(highlight=False)
    check_unchanged(config)
    prepared = prepare(config.data, lambda text: console.print(text, markup=False))
    check_vocabulary(config, prepared)
    check_sources(config, prepared.tokenizer.fingerprint)
    data = config.data
    for phase in config.phases:
        model = checkpoint.phase_model(config, phase.name)
        table = Table(title=f"{phase.name}: {phase.steps:,} steps", title_justify="left", show_header=False)
        counts = dataclasses.asdict(parameter_count(model))
        for name, count in counts.items():
            label = "parameters used by a token" if name == "active" else f"parameters, {name}"
            table.add_row(label, f"{count:,}")
        flops = train_flops_per_token(model, data.length)
        table.add_row("training FLOPs per token, nothing skipped", f"{flops:.3g}")
        micro = data.batch_size // phase.optim.accumulation
        for name, size in training_memory_bytes(model, micro, data.length).items():
            table.add_row(f"memory estimate, {name}", f"{size / 2**20:,.1f} MiB")
        table.add_row("memory of the compiled step", f"{_compiled_bytes(config, phase) / 2**20:,.1f} MiB")
        console.print(table)
    windows = num_windows(prepared.train, data.length)
    console.print(
        f"training: {prepared.train.num_tokens:,} tokens in {prepared.train.num_documents:,} documents, {windows:,} "
        f"windows of {data.length}; held out: {prepared.validation.num_tokens:,} tokens"
    )
    batches = train_batches(
        prepared.train, batch_size=data.batch_size, length=data.length, seed=data.seed, examples_seen=0
    )
    for i, row in enumerate(next(batches)[:PREVIEW_ROWS]):
        text = prepared.tokenizer.decode(row.tolist())
        console.print(f"first batch, row {i}: {text[:PREVIEW_CHARACTERS]!r}", markup=False, soft_wrap=True)
    batches.close()


def _compiled_bytes(config: Config, phase: Phase) -> int:
    """Bytes that the compiled train step holds at its peak: state, batch and temporaries."""
    model = checkpoint.phase_model(config, phase.name)
    optimizer = make_optimizer(phase.optim, phase.steps)
    state = jax.eval_shape(lambda p: init_state(p, optimizer), checkpoint.abstract_params(model))
    batch = {"tokens": jax.ShapeDtypeStruct((config.data.batch_size, config.data.length), jnp.int32)}
    step = jit_train_step(model, optimizer, phase.optim.accumulation, config.seed)
    memory = step.lower(state, batch).compile().memory_analysis()
    # The donated state is argument and output at once.
    outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return memory.argument_size_in_bytes + outputs + memory.temp_size_in_bytes
