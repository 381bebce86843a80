"""The train step before there is a state: traced from shapes, compiled for this machine or for another one."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from mom_jax import attention, dispatch
from mom_jax.config import ModelConfig
from mom_jax.fields import require
from mom_jax.sharding import batch_sharding, check_mesh
from train.config import Config, DataConfig, Phase
from train.steps.guard import abstract_guard
from train.steps.optimizer import make_optimizer
from train.steps.state import abstract_state
from train.steps.train_step import jit_train_step


def check_devices(config: Config, mesh: Mesh) -> None:
    """Raises ConfigError where the models or the batch cannot be divided among the devices of the mesh, or these cannot
    run the backends that a phase asks for."""
    for phase in config.phases:
        model = config.model_of(phase.name)
        check_sizes(config, phase, model, mesh.shape)
        dispatch.resolve(model)
        attention.resolve(model, config.data.length, packed=config.data.packing == "documents")


def check_sizes(config: Config, phase: Phase, model: ModelConfig, sizes: Mapping[str, int]) -> None:
    """The same for one phase and the sizes of a mesh."""
    check_mesh(model, sizes)
    devices, size = math.prod(sizes.values()), config.data.batch_size
    require(size % devices == 0, "data.batch_size", size, f"must be a multiple of the mesh's {devices} devices")
    own, parts = size // devices, phase.optim.accumulation
    allowed = f"must divide the {own} of {size} sequences that each of the mesh's {devices} devices has"
    require(own % parts == 0, f"phases.{phase.name}.optim.accumulation", parts, allowed)


def abstract_batch(data: DataConfig, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes, types and shardings of a training batch."""
    rows = jax.ShapeDtypeStruct((data.batch_size, data.length), jnp.int32, sharding=batch_sharding(mesh))
    names = ["tokens"] + ["segment_ids", "positions"] * (data.packing == "documents")
    return dict.fromkeys(names, rows)


def trace_step(config: Config, phase: Phase, mesh: Mesh) -> Any:
    """The train step of a phase, traced: `.lower().compile()` gives the program. Nothing is allocated."""
    model, optimizer = config.model_of(phase.name), make_optimizer(phase.optim, phase.steps)
    given = model, optimizer, phase.optim.accumulation, config.seed, mesh
    step = jit_train_step(*given, gather=config.mesh.gather, watch=config.watch)
    batch = abstract_batch(config.data, mesh)
    return step.trace(abstract_state(model, optimizer, mesh), batch, abstract_guard(mesh))


class CompiledMemory(NamedTuple):
    """Bytes on each device. temporaries: what a step holds at its peak beside its arguments and results. peak: all of
    it, state and batch among it."""

    temporaries: int
    peak: int


def compiled_memory(compiled: Any, mesh: Mesh) -> CompiledMemory:
    """What a step holds that was compiled for the devices of a mesh."""
    memory = compiled.memory_analysis()
    # The donated state is argument and output at once.
    lasting = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    if mesh.devices.flat[0].platform != "tpu":
        return CompiledMemory(memory.temp_size_in_bytes, lasting + memory.temp_size_in_bytes)
    # For TPUs `temp_size` adds up more than ever is there at once: with 21 GiB of it GPT-2 large's step compiles for a
    # chip of 16 GiB, which XLA refuses by its peak. The program itself lies in the same memory.
    peak = memory.peak_memory_in_bytes
    return CompiledMemory(peak - lasting, peak + memory.generated_code_size_in_bytes)
