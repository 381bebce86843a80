"""The train step before there is a state: traced from shapes, compiled for this machine or for another one."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from mom_jax import attention, dispatch
from mom_jax.analysis.cost import parameter_count
from mom_jax.config import ModelConfig
from mom_jax.fields import ConfigError, require
from mom_jax.sharding import batch_sharding, check_mesh
from train.config import Config, DataConfig, Phase
from train.steps.memory import gib, memory_of
from train.steps.numbers.guard import abstract_guard
from train.steps.optimizer import make_optimizer
from train.steps.state import abstract_params, abstract_state
from train.steps.teaching import Teaching
from train.steps.train_step import jit_train_step


def check_devices(config: Config, mesh: Mesh) -> None:
    """Raises ConfigError where the models or the batch cannot be divided among the devices of the mesh, or these cannot
    run the backends that a phase asks for, or have far too little memory."""
    check_memory(config, mesh)
    for phase in config.phases:
        model = config.model_of(phase.name)
        check_sizes(config, phase, model, mesh.shape)
        dispatch.resolve(model)
        attention.resolve(model, config.data.length, packed=config.data.packing == "documents")


def check_memory(config: Config, mesh: Mesh) -> None:
    """Raises ConfigError where a phase cannot fit in the devices' memory by what it needs at the very least: its state,
    and the output of one layer. By arithmetic alone, so that no size is too large to be refused."""
    have = memory_of(list(mesh.devices.flat))
    if have is None:
        return
    for phase in config.phases:
        model, optim, data = config.model_of(phase.name), phase.optim, config.data
        count = parameter_count(model).total
        state = 4 * count * (1 if optim.freeze else 3)  # what is frozen has no moments
        stream = data.batch_size // optim.accumulation * data.length * model.d_model * jnp.dtype(model.dtype).itemsize
        if state > have:
            what = f"{count:,} parameters and their moments take {gib(state)}"
            raise ConfigError(f"phases.{phase.name}.model: its {what}, the devices have {gib(have)}")
        allowed = f"with data.length={data.length} one layer's output alone takes {gib(stream)}, "
        require(stream <= have, "data.batch_size", data.batch_size, f"{allowed}the devices have {gib(have)}")


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


def teaching_of(config: Config, phase: Phase, theirs: ModelConfig | None = None) -> Teaching | None:
    """What a phase's step has of its teacher. theirs: the teacher's model, which the configuration itself says only if
    it is the phase before's; without it a teacher of the same shape is taken."""
    if phase.distill is None:
        return None
    ours, names = config.model_of(phase.name), [row.name for row in config.phases]
    if phase.distill == "previous":
        theirs = theirs or config.model_of(names[names.index(phase.name) - 1])
    # Whose parameters it has is the teacher's business, how it computes on this machine the run's.
    fields = ("dtype", "dispatch", "attention_kernel", "exchange_room", "remat")
    model = dataclasses.replace(theirs or ours, **{field: getattr(ours, field) for field in fields})
    return Teaching(model, phase.distill_weight, phase.distill_temperature)


def trace_step(config: Config, phase: Phase, mesh: Mesh, teacher: ModelConfig | None = None) -> Any:
    """The train step of a phase, traced: `.lower().compile()` gives the program. Nothing is allocated. teacher: see
    `teaching_of`."""
    model, optimizer = config.model_of(phase.name), make_optimizer(phase.optim, phase.steps)
    teaching = teaching_of(config, phase, teacher)
    options = model, optimizer, phase.optim.accumulation, config.seed, mesh
    step = jit_train_step(*options, gather=config.mesh.gather, watch=config.watch, teaching=teaching)
    inputs = [abstract_state(model, optimizer, mesh), abstract_batch(config.data, mesh), abstract_guard(mesh)]
    return step.trace(*inputs, *([] if teaching is None else [abstract_params(teaching.model, mesh)]))


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
