"""A train step compiled for a topology, and what its program says: memory, products, communication."""

import collections
import dataclasses
import math
import re
import time
from collections.abc import Sequence
from typing import Any

import jax

from mom_jax.analysis import hlo
from mom_jax.analysis.chips import Chip
from mom_jax.analysis.cost import busiest_share
from mom_jax.sharding import MeshConfig, make_mesh
from train.config import Config, Phase
from train.planning.topology import building
from train.steps.compiled import check_sizes, compiled_memory, trace_step
from train.steps.optimizer import make_optimizer
from train.steps.state import abstract_state

# What XLA says of a program that does not fit: of its temporaries alone, or of all that it has assigned.
_TEMPORARIES = re.compile(r"temporaries \(([\d.]+)([KMGT]?)\) exceeds available HBM \(([\d.]+)([KMGT]?)\)")
_ALL = re.compile(r"Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm\. Exceeded")
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one chip. peak: of the whole program. activations: temporaries of the step, gradients and gathered
    parameters among them; None where the program does not fit and XLA does not say. capacity: what programs can have.
    """

    parameters: int
    optimizer: int
    activations: int | None
    peak: int
    capacity: int

    @property
    def fits(self) -> bool:
        return self.peak <= self.capacity


@dataclasses.dataclass(frozen=True)
class Program:
    """What one chip does in a step.

    flops: of products, routed ones as far as balanced routing leaves them to the busiest chip. product_bytes: operands
    and results of products. Both are None where the program does not fit and was not compiled to its end. state_bytes:
    of what the step reads and writes beside. sent: bytes by kind of collective; in_loops: those of them that are sent
    within loops; across: what of it a device's own adapter sends to other servers of GPUs. uncounted: loops and kernels
    that are in no figure.
    """

    mesh: dict[str, int]
    chips: int
    device: Chip
    memory: Memory
    compile_seconds: float
    flops: float | None = None
    product_bytes: float | None = None
    state_bytes: int = 0
    sent: dict[str, int] = dataclasses.field(default_factory=dict)
    sent_in_loops: dict[str, int] = dataclasses.field(default_factory=dict)
    sent_across: int = 0
    uncounted: tuple[str, ...] = ()


def compile_program(
    config: Config, phase: Phase, mesh_config: MeshConfig, devices: Sequence[Any], device: Chip
) -> Program:
    """Compiles the train step of a phase for `devices`, which are such a `device`. Raises ConfigError for a mesh that
    cannot be."""
    mesh = make_mesh(mesh_config, devices)
    model, optimizer = config.model_of(phase.name), make_optimizer(phase.optim, phase.steps)
    check_sizes(config, phase, model, mesh.shape)
    state = abstract_state(model, optimizer, mesh)
    parameters, moments = _local_bytes(state.params), _local_bytes((state.step, state.opt_state))
    found: dict[str, Any] = {"mesh": dict(mesh.shape), "chips": mesh.size, "device": device}
    start = time.process_time()
    with building(mesh) as platforms:
        lowered = trace_step(config, phase, mesh).lower(lowering_platforms=platforms)
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        sizes = exceeded(str(error), parameters + moments)
        if sizes is None:
            raise
        memory = Memory(parameters, moments, None, *sizes)
        return Program(**found, memory=memory, compile_seconds=time.process_time() - start)
    analysis = compiled.memory_analysis()
    held = compiled_memory(compiled, mesh)
    counted = hlo.count(compiled.as_text())
    routed = [call for call in counted.custom_calls if "gmm" in call.name]
    # Where rows are exchanged the kernels' shapes have room for more than an even share; the device with the most
    # modules, for which the others wait, has so much of it.
    parts = mesh.shape["module"]
    full = busiest_share(model, parts) / model.exchange_room if parts > 1 else 1.0
    flops = counted.flops + counted.kernel_flops + (full - 1) * sum(call.flops or 0 for call in routed)
    return Program(
        **found,
        memory=Memory(parameters, moments, held.temporaries, held.peak, device.memory_bytes),
        compile_seconds=time.process_time() - start,
        flops=flops,
        product_bytes=counted.product_bytes + sum(call.bytes for call in counted.custom_calls if call.flops),
        state_bytes=analysis.argument_size_in_bytes + analysis.output_size_in_bytes,
        sent=_by_kind(counted, in_loops=False),
        sent_in_loops=_by_kind(counted, in_loops=True),
        sent_across=_across(counted, [d.process_index for d in mesh.devices.flat]) if device.network_bandwidth else 0,
        uncounted=(*counted.unknown_loops, *(call.name for call in counted.unknown_kernels)),
    )


def exceeded(message: str, state: int) -> tuple[int, int] | None:
    """(bytes used, bytes of capacity) in XLA's message about a program that does not fit; None for another message.

    state: bytes of the arguments, which are added where the message speaks of temporaries.
    """
    for pattern, beside in ((_TEMPORARIES, state), (_ALL, 0)):
        if found := pattern.search(message):
            used, capacity = (round(float(found[i]) * _UNITS[found[i + 1]]) for i in (1, 3))
            return used + beside, capacity
    return None


def _by_kind(counted: hlo.HloCost, *, in_loops: bool) -> dict[str, int]:
    result: dict[str, int] = {}
    for one in counted.collectives:
        if one.bytes and (one.depth or not in_loops):
            result[one.kind] = result.get(one.kind, 0) + one.count * one.bytes
    return dict(sorted(result.items()))


def _across(counted: hlo.HloCost, servers: list[int]) -> int:
    """Bytes that a device's own adapter sends to other servers; servers: of each device of the mesh, in order.

    The devices of a group that are in one server share what leaves it: NCCL makes a ring through each adapter.
    """
    total = 0.0
    for one in counted.collectives:
        for group in hlo.members(one.groups) or [list(range(len(servers)))]:
            here = collections.Counter(servers[member] for member in group)
            if servers[0] in here and len(here) > 1:
                total += one.count * one.bytes / min(here.values())
                break
    return round(total)


def _local_bytes(tree: Any) -> int:
    """Bytes of one device's shards."""
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
