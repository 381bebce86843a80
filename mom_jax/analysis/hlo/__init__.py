"""Matrix products and collectives counted in an optimised HLO text (`compiled.as_text()`): one device's program.

XLA's own `cost_analysis` counts a loop's body once and believes what kernels declare. Here every product and every
collective is multiplied by the trips of the loops around it, and the kernels that are known are counted from their
shapes. Only matrix products count as FLOPs, a multiply-add being two. The text is all that is read: nothing here
depends on JAX.
"""

import collections
import dataclasses
import math
import re

from mom_jax.analysis.hlo.collectives import Collective, collective, members
from mom_jax.analysis.hlo.kernels import CustomCall, custom_call
from mom_jax.analysis.hlo.products import PRODUCTS
from mom_jax.analysis.hlo.text import (
    Computation,
    Instruction,
    called,
    devices,
    op_name,
    parse,
    shapes,
    size_bytes,
    written,
)
from mom_jax.analysis.hlo.values import Value, Values

__all__ = ["Collective", "CustomCall", "HloCost", "count", "large_in_loops", "members"]

FURTHER_ROUNDS = "further_rounds"  # the scope in mom_jax/dispatch/exchanged.py
_MAX_TRIPS = 1 << 17  # a loop that is still running then is an unknown one


@dataclasses.dataclass(frozen=True)
class HloCost:
    """flops: of all dots, convolutions and ragged dots. custom_calls, collectives: in the order of the text.
    product_bytes: of the operands and results of those products, each time anew.

    unknown_loops: loops with products, custom calls or collectives inside whose trips are not known; they are counted
    as one trip.
    """

    flops: int
    custom_calls: tuple[CustomCall, ...]
    unknown_loops: tuple[str, ...]
    collectives: tuple[Collective, ...] = ()
    product_bytes: int = dataclasses.field(default=0, compare=False)

    @property
    def kernel_flops(self) -> int:
        """FLOPs of the known kernels."""
        return sum(call.flops or 0 for call in self.custom_calls)

    @property
    def most_kernel_flops(self) -> int:
        return sum(call.most_flops or 0 for call in self.custom_calls)

    @property
    def unknown_kernels(self) -> tuple[CustomCall, ...]:
        """Calls that may multiply matrices and are in no count."""
        products = re.compile("tpu_custom_call|triton|mosaic|gemm|matmul|dot|conv|attention|fmha", re.IGNORECASE)
        return tuple(call for call in self.custom_calls if call.flops is None and products.search(call.target))


def count(text: str) -> HloCost:
    """The products and collectives of an HLO module's text.

    Loops for the further rounds of an exchange along `module` count as not entered: balanced routing needs none.
    Of a conditional's branches the one with the most FLOPs counts, among equal ones that with the most bytes sent.

    Raises ValueError where the text has no entry computation, or a collective's groups are written in an unknown way.
    """
    computations, entry = parse(text)
    tally = _Counter(computations, devices(text)).tally(entry, None)
    calls = tuple(call.times(runs) for call, runs in tally.calls.items())
    sent = tuple(dataclasses.replace(one, count=runs) for one, runs in tally.collectives.items())
    return HloCost(tally.flops, calls, tuple(dict.fromkeys(tally.loops)), sent, tally.bytes)


def large_in_loops(text: str, elements: int) -> list[tuple[str, str, str]]:
    """(opcode, shape, op_name) of every instruction within loops that makes an array of at least so many elements:
    casts, copies and sums of what loops only read should not be among them. Kernels that change an operand in place
    make nothing."""
    computations, _ = parse(text)
    bodies = {
        called(instruction.attributes)["body"][0]
        for computation in computations.values()
        for instruction in computation.instructions.values()
        if instruction.opcode == "while"
    }
    found = []
    for body in sorted(bodies):
        for instruction in computations[body].instructions.values():
            in_place = "output_to_operand_aliasing" in instruction.attributes
            if instruction.opcode in _MOVES_NOTHING or in_place:
                continue
            found += [
                (instruction.opcode, written([array])[0], op_name(instruction.attributes) or "")
                for array in shapes(instruction.shape)
                if math.prod(array[1]) >= elements
            ]
    return found


_MOVES_NOTHING = {"parameter", "tuple", "get-tuple-element", "bitcast", "while", "opt-barrier"}


@dataclasses.dataclass
class _Tally:
    """flops, bytes: of plain products. calls, collectives: single ones, and how often each runs."""

    flops: int = 0
    bytes: int = 0
    calls: collections.Counter[CustomCall] = dataclasses.field(default_factory=collections.Counter)
    collectives: collections.Counter[Collective] = dataclasses.field(default_factory=collections.Counter)
    loops: list[str] = dataclasses.field(default_factory=list)

    def add(self, other: "_Tally", times: int = 1, deeper: int = 0) -> None:
        self.flops += times * other.flops
        self.bytes += times * other.bytes
        for call, runs in other.calls.items():
            self.calls[call] += times * runs
        for one, runs in other.collectives.items():
            self.collectives[dataclasses.replace(one, depth=one.depth + deeper)] += times * runs
        self.loops += other.loops

    def expense(self) -> tuple[int, int]:
        """(FLOPs, bytes sent)."""
        kernels = sum(runs * (call.flops or 0) for call, runs in self.calls.items())
        return self.flops + kernels, sum(runs * one.bytes for one, runs in self.collectives.items())


class _Counter:
    def __init__(self, computations: dict[str, Computation], devices: tuple[int, int]):
        self.computations, self.devices = computations, devices

    def tally(self, name: str, arguments: list[Value] | None, caller: Instruction | None = None) -> _Tally:
        """What one run of a computation costs, `arguments` being what is known of its parameters."""
        computation, total = self.computations[name], _Tally()
        values = Values(self.computations, name, arguments)
        for instruction in computation.instructions.values():
            if instruction.opcode.endswith(("-done", "-update")):
                continue  # what it calls has been counted where it starts
            operands = [
                computation.instructions[o].shape for o in instruction.operands if o in computation.instructions
            ]
            calls = called(instruction.attributes)
            if instruction.opcode in PRODUCTS:
                total.flops += PRODUCTS[instruction.opcode](instruction, [shapes(shape)[0][1] for shape in operands])
                arrays = [array for shape in (*operands, instruction.shape) for array in shapes(shape)]
                total.bytes += sum(map(size_bytes, arrays))
            elif instruction.opcode == "custom-call":
                total.calls[custom_call(instruction, operands)] += 1
            elif one := collective(instruction, computation, caller, self.devices):
                total.collectives[one] += 1
            if instruction.opcode == "while":
                total.add(*self._loop(instruction, calls, values), deeper=1)
            elif instruction.opcode == "conditional":
                branches = calls.get("branch_computations") or [n for names in calls.values() for n in names]
                total.add(max((self.tally(branch, None) for branch in branches), key=_Tally.expense))
            else:
                known = [values.of(o) for o in instruction.operands] if instruction.opcode == "call" else None
                for inner in (n for names in calls.values() for n in names):
                    total.add(self.tally(inner, known, instruction))
        return total

    def _loop(self, loop: Instruction, calls: dict[str, list[str]], values: Values) -> tuple[_Tally, int]:
        """The cost of a loop's body, and its trips."""
        if FURTHER_ROUNDS in (op_name(loop.attributes) or ""):
            return _Tally(), 0
        (condition,), (body,) = calls["condition"], calls["body"]
        start = values.of(loop.operands[0])
        # What the body hands on as it is stays what it was; nothing is known of the rest inside the body.
        fixed: Value = None
        if isinstance(start, tuple):
            marks = tuple(object() for _ in start)
            after = Values(self.computations, body, [marks]).root()
            if isinstance(after, tuple):
                fixed = tuple(s if a is m else None for s, a, m in zip(start, after, marks, strict=True))
        cost = self.tally(body, [fixed])
        if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes):
            return cost, int(known[1])
        trips = self._trips(condition, body, start)
        if trips is None and (cost.flops or cost.calls or cost.collectives):
            cost.loops.append(loop.name)
        return cost, 1 if trips is None else trips

    def _trips(self, condition: str, body: str, state: Value) -> int | None:
        """Runs what is known of a loop: on the TPU its trips are not written down."""
        for trips in range(_MAX_TRIPS):
            running = Values(self.computations, condition, [state]).root()
            if not isinstance(running, int) or not running:
                return None if running is None else trips
            state = Values(self.computations, body, [state]).root()
        return None
