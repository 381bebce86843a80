"""Collectives, and the bytes that each device sends for them."""

import dataclasses
import math
import re
from collections.abc import Iterator

import numpy as np

from mom_jax.analysis.hlo.text import Computation, Instruction, elements, op_name, shapes, size_bytes, written

# How often the data goes round a ring of n devices, which send n - 1 of its n parts in a round.
_ROUNDS = {"all-gather": 1, "all-reduce": 2, "reduce-scatter": 1, "all-to-all": 1, "ragged-all-to-all": 1}
_KINDS = (*_ROUNDS, "collective-permute", "collective-broadcast")


@dataclasses.dataclass(frozen=True)
class Collective:
    """A collective, or all of a program that are alike. An asynchronous one counts once, where it starts.

    kind: its opcode, without `-start`; the TPU's fusion of an all-reduce with slices runs as a `reduce-scatter` and is
    called so. count: how often it runs. depth: how many loops are around it. operands, results: shapes on one device
    like `bf16[8,64]`. group_size: devices that take part together, the most where groups differ; 1 means that nothing
    is sent. groups: `replica_groups` or `source_target_pairs` as written. op_name: where it comes from in the traced
    program, empty where the compiler does not say.

    bytes: what one device sends in one run, rounded up, if the n devices of a group are a ring: all-gather
    result·(n-1)/n, reduce-scatter and all-to-all operand·(n-1)/n, all-reduce twice that, permute and broadcast all of
    the operand. A ragged all-to-all counts as if its smaller side were full: the rows that are chosen fill it, while
    the other side, a buffer for them, has room for more.
    """

    kind: str
    count: int
    depth: int
    operands: tuple[str, ...]
    results: tuple[str, ...]
    group_size: int
    groups: str
    bytes: int
    op_name: str


def collective(
    instruction: Instruction, computation: Computation, caller: Instruction | None, devices: tuple[int, int]
) -> Collective | None:
    """One run of an instruction of `computation`, None where it is no collective or goes on with one started elsewhere.

    caller: what calls the computation, such as its fusion. devices: replicas and partitions of the module.

    Raises ValueError where the groups are written in an unknown way.
    """
    kind = instruction.opcode.removesuffix("-start")
    if kind not in _KINDS or _continues(instruction, computation):
        return None
    shape = instruction.shape
    if instruction.opcode != kind and kind != "all-reduce":
        shape = elements(shape)[1]  # of (operands, results, ...)
    results = shapes(shape)
    known = computation.instructions
    operands = [array for name in instruction.operands if name in known for array in shapes(known[name].shape)]
    if kind == "all-reduce" and caller is not None and caller.opcode.startswith("fusion"):
        slices = list(_slices(instruction.name, computation))
        if slices and None not in slices:
            kind, results = "reduce-scatter", [array for part in slices if part is not None for array in shapes(part)]
    size, groups = _group(kind, instruction, devices)
    sides = {"all-gather": [results], "ragged-all-to-all": [operands[:1], results]}.get(kind, [operands])
    moved = min(sum(map(size_bytes, side)) for side in sides) if size > 1 else 0
    if kind in _ROUNDS:
        moved = -(-_ROUNDS[kind] * moved * (size - 1) // size)
    name = op_name(instruction.attributes) or (op_name(caller.attributes) if caller else None) or ""
    return Collective(kind, 1, 0, written(operands), written(results), size, groups, moved, name)


def _continues(instruction: Instruction, computation: Computation) -> bool:
    """Whether a collective is part of a TPU's asynchronous collective fusion that another computation starts.

    The same collective is written in the fusion that starts it, in those that compute while it runs, and in the one
    that awaits it. Only the first hands it to `AsyncCollectiveStart`.
    """
    if "async_collective_fusion_config" not in instruction.attributes:
        return False
    return not any('"AsyncCollectiveStart"' in other.attributes for other in computation.instructions.values())


def _slices(name: str, computation: Computation) -> Iterator[str | None]:
    """The shapes of the slices of a value that are used; None for any other use of it."""
    for user in computation.instructions.values():
        if name in user.operands:
            if user.opcode in ("get-tuple-element", "bitcast", "reshape"):
                yield from _slices(user.name, computation)
            else:
                yield user.shape if user.opcode == "dynamic-slice" else None


# The groups; or sizes like `[2,4]<=[8]`: their number and their size; or axes of a mesh, like `mesh['a'=4] {'a'}`.
_GROUPS = re.compile(
    r"\b(replica_groups|source_target_pairs)="
    r"(\{[\d{},]*\}|\[\d+,\d+\]<=\[[\d,]+\](?:T\([\d,]+\))?|mesh\[.*?\{.*?\})"
)


def _group(kind: str, instruction: Instruction, devices: tuple[int, int]) -> tuple[int, str]:
    """(devices of a group, groups as written)."""
    found = _GROUPS.search(instruction.attributes)
    if not found:
        raise ValueError(f"the groups of {instruction.name} are not understood: {instruction.attributes[:200]}")
    groups = found[2]
    listed = [set(group.split(",")) for group in re.findall(r"\{([\d,]+)\}", groups)]
    if found[1] == "source_target_pairs":
        return _most_connected(listed), groups
    replicas, partitions = devices
    channel = "channel_id=" in instruction.attributes
    if groups == "{}":
        return replicas * (partitions if channel else 1), groups
    if groups.startswith("mesh"):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", groups))
        axes = re.findall(r"'([^':]+)'?(?::\(\d+\)(\d+)'?)?", groups[groups.index("{") :])  # a:(1)2 is 2 of an axis
        size = math.prod(int(part or sizes[axis]) for axis, part in axes)
    elif groups.startswith("["):
        size = int(groups[1:].split("]")[0].split(",")[1])
    else:
        size = max(map(len, listed))
    # A group is one of replicas where ids are not global, and goes over their partitions where there is a channel.
    flat = "use_global_device_ids=true" in instruction.attributes
    across = channel and not flat and kind in ("all-gather", "all-reduce", "reduce-scatter")
    return size * (partitions if across else 1), groups


def members(groups: str) -> list[list[int]] | None:
    """The devices of each group of a collective, `groups` as written; None where they are all devices together or are
    written as axes of a mesh."""
    if groups.startswith("["):
        sizes, order = groups.split("<=")
        shape = [int(size) for size in re.findall(r"\d+", order.split("T")[0])]
        ids = np.arange(math.prod(shape)).reshape(shape)
        if "T" in order:
            ids = ids.transpose([int(axis) for axis in re.findall(r"\d+", order.split("T")[1])])
        return ids.reshape([int(size) for size in re.findall(r"\d+", sizes)]).tolist()
    listed = re.findall(r"\{([\d,]+)\}", groups)
    return [[int(member) for member in group.split(",")] for group in listed] or None


def _most_connected(pairs: list[set[str]]) -> int:
    """The most devices that pairs of a source and a target connect."""
    groups: list[set[str]] = []
    for pair in pairs:
        joined = pair.union(*(group for group in groups if group & pair))
        groups = [group for group in groups if not group & pair] + [joined]
    return max(map(len, groups), default=1)
