"""FLOPs of matrix products counted in an optimised HLO text (`compiled.as_text()`), which is one device's program.

XLA's own `cost_analysis` counts a loop's body once and believes what kernels declare. Here every product is multiplied
by the trips of the loops around it, and the kernels that are known are counted from their shapes. Only matrix products
count, a multiply-add being two FLOPs. The text is all that is read: nothing here depends on JAX.
"""

import collections
import dataclasses
import json
import math
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

# What an instruction computes as far as loops need it: integers and tuples of them; None where it is not known.
Value = Any
Array = tuple[str, tuple[int, ...]]  # element type, dimensions
_MAX_TRIPS = 1 << 17  # a loop that is still running then is an unknown one


@dataclasses.dataclass(frozen=True)
class CustomCall:
    """A custom call, or all of a program that are alike.

    target: `custom_call_target`; `tpu_custom_call` is any Pallas kernel. name: its op_name. operands, results: shapes
    like `bf16[8,64]`. count: how often it runs. flops, most_flops: of all runs together, None where the kernel is not
    known: the products that the mathematics needs, and the most that the kernel may do for them. (A grouped product
    works on tiles of rows and does a tile again for each further group in it.)
    """

    target: str
    name: str
    operands: tuple[str, ...]
    results: tuple[str, ...]
    count: int
    flops: int | None
    most_flops: int | None

    def times(self, runs: int) -> "CustomCall":
        """So many of these calls."""
        flops, most = (None if f is None else runs * f for f in (self.flops, self.most_flops))
        return dataclasses.replace(self, count=runs * self.count, flops=flops, most_flops=most)


@dataclasses.dataclass(frozen=True)
class HloCost:
    """flops: of all dots, convolutions and ragged dots. custom_calls: in the order of the text.

    unknown_loops: loops with products or custom calls inside whose trips are not known; they are counted as one trip.
    """

    flops: int
    custom_calls: tuple[CustomCall, ...]
    unknown_loops: tuple[str, ...]

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
        products = re.compile("tpu_custom_call|triton|gemm|matmul|dot|conv|attention|fmha", re.IGNORECASE)
        return tuple(call for call in self.custom_calls if call.flops is None and products.search(call.target))


def count(text: str) -> HloCost:
    """The products of an HLO module's text. Of a conditional's branches the most expensive one counts.

    Raises ValueError where the text has no entry computation.
    """
    computations, entry = _parse(text)
    tally = _Counter(computations).tally(entry, None)
    calls = tuple(call.times(runs) for call, runs in tally.calls.items())
    return HloCost(tally.flops, calls, tuple(dict.fromkeys(tally.loops)))


# The text.


class _Instruction(NamedTuple):
    """`%name = shape opcode(inner), attributes`; operands: their names."""

    name: str
    shape: str
    opcode: str
    inner: str
    operands: tuple[str, ...]
    attributes: str


class _Computation(NamedTuple):
    instructions: dict[str, _Instruction]
    root: str


_START = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) (?:\(.*)?\{$")
_END = re.compile(r"^\}(, execution_thread=.*)?$")
_CALLED = re.compile(r"\b(calls|to_apply|condition|body|true_computation|false_computation)=%?([\w.\-]+)")
_LISTED = re.compile(r"\b(branch_computations|called_computations)=\{([^}]*)\}")


def _parse(text: str) -> tuple[dict[str, _Computation], str]:
    """The computations by name, and the name of the entry."""
    computations: dict[str, _Computation] = {}
    entry, current, root, name = "", "", "", ""
    lines: dict[str, str] = {}
    for line in text.splitlines():
        if not current:
            if header := _HEADER.match(line):
                current, lines, root, name = header[2], {}, "", ""
                entry = current if header[1] else entry
        elif _END.match(line):
            instructions = {key: _instruction(key, value) for key, value in lines.items()}
            computations[current], current = _Computation(instructions, root), ""
        elif start := _START.match(line):
            name = start[2]
            root = name if start[1] else root
            lines[name] = line[start.end() :]
        elif name:  # kernels' metadata has line breaks
            lines[name] += line
    if not entry:
        raise ValueError("no ENTRY computation: this is not the text of an HLO module")
    return computations, entry


def _instruction(name: str, text: str) -> _Instruction:
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    opening = text.index("(", end)
    closing = _closing(text, opening)
    inner = re.sub(r"/\*.*?\*/", "", text[opening + 1 : closing])
    # An operand may have its shape before its name.
    operands = tuple(part.split()[-1].lstrip("%") for part in _split(inner) if part.strip())
    return _Instruction(name, text[:end], text[end:opening].strip(), inner, operands, text[closing + 1 :])


def _closing(text: str, opening: int) -> int:
    """Where the parenthesis that opens at `opening` closes."""
    depth = 0
    for match in re.compile(r"[()]").finditer(text, opening):
        depth += 1 if match[0] == "(" else -1
        if not depth:
            return match.start()
    raise ValueError(f"unbalanced parentheses: {text[:80]}")


def _split(text: str) -> Iterator[str]:
    """The parts between the commas that are in no bracket."""
    depth, start = 0, 0
    for match in re.finditer(r"[(){}\[\],]", text):
        depth += (match[0] in "({[") - (match[0] in ")}]")
        if match[0] == "," and not depth:
            yield text[start : match.start()]
            start = match.end()
    yield text[start:]


def _shapes(text: str) -> list[Array]:
    """The arrays in a shape."""
    found = re.findall(r"\b([a-z]+\d*\w*)\[([\d,<= ]*)\]", text)
    return [(kind, tuple(int(d.strip("<= ")) for d in dims.split(",") if d)) for kind, dims in found]


def _called(attributes: str) -> dict[str, list[str]]:
    """The computations that an instruction calls, by the attribute that names them."""
    plain = re.split(r", (?:metadata|backend_config|frontend_attributes)=", attributes, maxsplit=1)[0]
    result = {key: [name] for key, name in _CALLED.findall(plain)}
    for key, names in _LISTED.findall(plain):
        result[key] = [name.strip().lstrip("%") for name in names.split(",") if name.strip()]
    return result


def _numbers(attributes: str, key: str) -> list[int]:
    """The numbers of an attribute like `key={1,2}`; none where it is not there."""
    match = re.search(rf"\b{key}=\{{([\d,]*)\}}", attributes)
    return [int(number) for number in match[1].split(",") if number] if match else []


# Counting.


@dataclasses.dataclass
class _Tally:
    """flops: of plain products. calls: single custom calls, and how often each runs."""

    flops: int = 0
    calls: collections.Counter[CustomCall] = dataclasses.field(default_factory=collections.Counter)
    loops: list[str] = dataclasses.field(default_factory=list)

    def add(self, other: "_Tally", times: int = 1) -> None:
        self.flops += times * other.flops
        for call, runs in other.calls.items():
            self.calls[call] += times * runs
        self.loops += other.loops

    def all_flops(self) -> int:
        return self.flops + sum(runs * (call.flops or 0) for call, runs in self.calls.items())


class _Counter:
    def __init__(self, computations: dict[str, _Computation]):
        self.computations = computations

    def tally(self, name: str, arguments: list[Value] | None) -> _Tally:
        """What one run of a computation costs, `arguments` being what is known of its parameters."""
        computation, total = self.computations[name], _Tally()
        values = _Values(self.computations, name, arguments)
        for instruction in computation.instructions.values():
            shapes = [computation.instructions[o].shape for o in instruction.operands if o in computation.instructions]
            called = _called(instruction.attributes)
            if instruction.opcode in _PRODUCTS:
                total.flops += _PRODUCTS[instruction.opcode](instruction, [_shapes(shape)[0][1] for shape in shapes])
            elif instruction.opcode == "custom-call":
                total.calls[_custom_call(instruction, shapes)] += 1
            if instruction.opcode == "while":
                total.add(*self._loop(instruction, called, values))
            elif instruction.opcode == "conditional":
                branches = called.get("branch_computations") or [n for names in called.values() for n in names]
                total.add(max((self.tally(branch, None) for branch in branches), key=_Tally.all_flops))
            else:
                known = [values.of(o) for o in instruction.operands] if instruction.opcode == "call" else None
                for inner in (n for names in called.values() for n in names):
                    total.add(self.tally(inner, known))
        return total

    def _loop(self, loop: _Instruction, called: dict[str, list[str]], values: "_Values") -> tuple[_Tally, int]:
        """The cost of a loop's body, and its trips."""
        (condition,), (body,) = called["condition"], called["body"]
        start = values.of(loop.operands[0])
        # What the body hands on as it is stays what it was; nothing is known of the rest inside the body.
        fixed: Value = None
        if isinstance(start, tuple):
            marks = tuple(object() for _ in start)
            after = _Values(self.computations, body, [marks]).root()
            if isinstance(after, tuple):
                fixed = tuple(s if a is m else None for s, a, m in zip(start, after, marks, strict=True))
        cost = self.tally(body, [fixed])
        if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes):
            return cost, int(known[1])
        trips = self._trips(condition, body, start)
        if trips is None and (cost.flops or cost.calls):
            cost.loops.append(loop.name)
        return cost, 1 if trips is None else trips

    def _trips(self, condition: str, body: str, state: Value) -> int | None:
        """Runs what is known of a loop: on the TPU its trips are not written down."""
        for trips in range(_MAX_TRIPS):
            running = _Values(self.computations, condition, [state]).root()
            if not isinstance(running, int) or not running:
                return None if running is None else trips
            state = _Values(self.computations, body, [state]).root()
        return None


_ARITHMETIC: dict[str, Callable[[int, int], int]] = {
    "add": lambda a, b: a + b,
    "subtract": lambda a, b: a - b,
    "multiply": lambda a, b: a * b,
    "minimum": min,
    "maximum": max,
    "and": lambda a, b: a & b,
    "or": lambda a, b: a | b,
}
_COMPARE: dict[str, Callable[[int, int], bool]] = {
    "LT": lambda a, b: a < b,
    "LE": lambda a, b: a <= b,
    "GT": lambda a, b: a > b,
    "GE": lambda a, b: a >= b,
    "EQ": lambda a, b: a == b,
    "NE": lambda a, b: a != b,
}


class _Values:
    """What is known of one run of a computation: integers, truth values (0 and 1) and tuples."""

    def __init__(self, computations: dict[str, _Computation], name: str, arguments: list[Value] | None):
        self.computations, self.computation, self.arguments = computations, computations[name], arguments
        self.memo: dict[str, Value] = {}

    def root(self) -> Value:
        return self.of(self.computation.root)

    def of(self, name: str) -> Value:
        if name not in self.memo:
            instruction = self.computation.instructions.get(name)
            self.memo[name] = None if instruction is None else self._evaluate(instruction)
        return self.memo[name]

    def _evaluate(self, instruction: _Instruction) -> Value:
        opcode, operands = instruction.opcode, instruction.operands
        integer = re.match(r"([su]\d+|pred)\[\]", instruction.shape)
        if not integer and not instruction.shape.startswith("("):
            return None
        if opcode == "parameter":
            return None if self.arguments is None else self.arguments[int(instruction.inner)]
        if opcode == "constant" and integer:
            literal = {"true": "1", "false": "0"}.get(instruction.inner, instruction.inner)
            return int(literal) if re.fullmatch(r"-?\d+", literal) else None
        if opcode == "tuple":
            return tuple(self.of(operand) for operand in operands)
        if opcode == "get-tuple-element":
            whole, index = self.of(operands[0]), re.search(r"index=(\d+)", instruction.attributes)
            return whole[int(index[1])] if isinstance(whole, tuple) and index else None
        if opcode in ("copy", "bitcast", "convert", "opt-barrier", "copy-start", "copy-done"):
            return self.of(operands[0])
        if opcode in ("fusion", "call"):
            (inner,) = (n for names in _called(instruction.attributes).values() for n in names)
            return _Values(self.computations, inner, [self.of(operand) for operand in operands]).root()
        if opcode == "compare" or opcode in _ARITHMETIC:
            values = [self.of(operand) for operand in operands]
            if not all(isinstance(value, int) for value in values):
                return None
            if opcode != "compare":
                return _ARITHMETIC[opcode](*values)
            direction = re.search(r"direction=(\w+)", instruction.attributes)
            return int(_COMPARE[direction[1]](*values)) if direction else None
        return None


# Products: (instruction, dimensions of its operands) -> FLOPs.


def _dot(dot: _Instruction, operands: list[tuple[int, ...]]) -> int:
    contracted = math.prod(operands[0][axis] for axis in _numbers(dot.attributes, "lhs_contracting_dims"))
    return 2 * math.prod(_shapes(dot.shape)[0][1]) * contracted


def _ragged_dot(dot: _Instruction, operands: list[tuple[int, ...]]) -> int:
    """As if every row were in a group: each element of the left side meets each column of its group's matrix."""
    lhs, rhs = operands[:2]
    keys = ("rhs_contracting_dims", "rhs_batch_dims", "rhs_group_dims")
    shared = [axis for key in keys for axis in _numbers(dot.attributes, key)]
    return 2 * math.prod(lhs) * math.prod(size for axis, size in enumerate(rhs) if axis not in shared)


def _convolution(convolution: _Instruction, operands: list[tuple[int, ...]]) -> int:
    """Padding and the holes of a dilated operand cost nothing: on the TPU a batched product is such a convolution."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", convolution.attributes)
    if labels is None:
        raise ValueError(f"convolution without dim_labels: {convolution.name}")
    arrays = zip(labels.groups(), (*operands[:2], _shapes(convolution.shape)[0][1]), strict=True)
    lhs, rhs, result = (dict(zip(label, dims, strict=True)) for label, dims in arrays)
    window = re.search(r"window=\{([^}]*)\}", convolution.attributes)
    settings = dict(part.split("=") for part in window[1].split()) if window else {}
    pairs = 1
    for axis in range(len(lhs) - 2):
        of = {key: value.split("x")[axis] for key, value in settings.items()}
        pairs *= _window_pairs(
            lhs[str(axis)],
            rhs[str(axis)],
            result[str(axis)],
            int(of.get("stride", 1)),
            int(of.get("pad", "0_0").split("_")[0]),
            int(of.get("lhs_dilate", 1)),
            int(of.get("rhs_dilate", 1)),
        )
    return 2 * result["b"] * result["f"] * rhs["i"] * pairs


def _window_pairs(size: int, window: int, outputs: int, stride: int, pad: int, dilation: int, spacing: int) -> int:
    """How many (output, window element) meet an element of the operand along one axis."""
    place = stride * np.arange(outputs)
    pairs = 0
    for element in range(window):
        at = place + element * spacing - pad
        pairs += int(((at >= 0) & (at <= (size - 1) * dilation) & (at % dilation == 0)).sum())
    return pairs


_PRODUCTS = {"dot": _dot, "convolution": _convolution, "ragged-dot": _ragged_dot}


# Kernels.


def _custom_call(call: _Instruction, operand_shapes: list[str]) -> CustomCall:
    target = re.search(r'custom_call_target="([^"]*)"', call.attributes)
    named = re.search(r'metadata=\{[^}]*?op_name="((?:[^"\\]|\\.)*)"', call.attributes)
    name = named[1] if named else re.sub(r"[.\d]+$", "", call.name)
    operands, results = [array for shape in operand_shapes for array in _shapes(shape)], _shapes(call.shape)
    kernel = target is not None and target[1] == "tpu_custom_call"
    flops = _kernel_flops(name, operands, results, call.attributes) if kernel else None
    names = target[1] if target else "", name
    return CustomCall(*names, _written(operands), _written(results), 1, *(flops or (None, None)))


def _written(arrays: list[Array]) -> tuple[str, ...]:
    return tuple(f"{kind}[{','.join(map(str, dims))}]" for kind, dims in arrays)


def _kernel_flops(name: str, operands: list[Array], results: list[Array], attributes: str) -> tuple[int, int] | None:
    """(FLOPs needed, FLOPs at most) of a run of a kernel that is known by its name, else None."""
    if "ragged-dot-metadata" in name:
        return 0, 0
    if re.search(r"ragged-dot|gmm", name):
        return _grouped(operands, results)
    if phase := re.search(r"splash_m[hq]a_(fwd|dq|dkv)", name):
        return _splash(phase[1], operands, attributes)
    return None


def _grouped(operands: list[Array], results: list[Array]) -> tuple[int, int] | None:
    """XLA's kernel of `ragged_dot`, and megablox: rows [m, k] times matrices [N, k, n], or the matrices' gradient."""
    matrices = [dims for _, dims in operands if len(dims) >= 2]
    result = results[0][1]
    if len(matrices) < 2 or len(result) not in (2, 3):
        return None
    lhs, rhs = matrices[:2]
    rows = lhs[0]
    if len(result) == 2:
        groups, flops = rhs[0], 2 * rows * lhs[1] * result[1]
    else:
        groups, flops = result[0], 2 * rows * result[1] * result[2]
    # After the groups' offsets, one more than groups, comes the group of each visited tile: tiles + groups - 1 at most.
    vectors = [dims[0] for kind, dims in operands if len(dims) == 1 and kind == "s32"]
    if groups + 1 not in vectors[:-1]:
        return flops, flops
    visits = vectors[vectors.index(groups + 1) + 1]
    tiles = visits - groups + 1
    return flops, flops * visits // tiles


# Products of a kernel with the scores' size, by phase: (over the width of queries and keys, over the width of values).
_SPLASH = {"fwd": (1, 1), "dq": (2, 1), "dkv": (2, 2), "fused": (3, 2)}


def _splash(phase: str, operands: list[Array], attributes: str) -> tuple[int, int] | None:
    """Splash attention. A mask that the kernel computes is taken for a causal one, whose empty blocks are free.

    The backward kernels make the scores again.
    """
    q, k, v = [dims for kind, dims in operands if re.match("b?f", kind) and len(dims) >= 2][:3]
    queries, keys = q[-2], k[-2]
    blocks: dict[str, Any] = {}
    if match := re.search(r'"xprof_metadata":"((?:[^"\\]|\\.)*)"', attributes):
        blocks = json.loads(match[1].replace('\\"', '"'))
    suffix = "" if phase == "fwd" else f"_{phase}"
    if phase == "dkv" and blocks.get("use_fused_bwd_kernel"):
        phase = "fused"
    wide, narrow = _SPLASH[phase]
    square = 2 * math.prod(q[:-2]) * (wide * q[-1] + narrow * v[-1])
    size_q, size_k = blocks.get(f"block_q{suffix}"), blocks.get(f"block_kv{suffix}")
    places = any(kind == "s32" and len(dims) == 2 and queries in dims for kind, dims in operands)
    pairs = queries * keys
    if places and size_q and size_k:
        pairs = sum(min(keys, -(-end // size_k) * size_k) * size_q for end in range(size_q, queries + 1, size_q))
    return square * pairs, square * pairs
