"""The text of an HLO module, as instructions by computation."""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

Array = tuple[str, tuple[int, ...]]  # element type, dimensions


class Instruction(NamedTuple):
    """`%name = shape opcode(inner), attributes`; operands: their names."""

    name: str
    shape: str
    opcode: str
    inner: str
    operands: tuple[str, ...]
    attributes: str


class Computation(NamedTuple):
    """A computation of the text: its instructions by name, and the name of the one that is its result."""

    instructions: dict[str, Instruction]
    root: str


_START = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) (?:\(.*)?\{$")
_END = re.compile(r"^\}(, execution_thread=.*)?$")
_CALLED = re.compile(r"\b(calls|to_apply|condition|body|true_computation|false_computation)=%?([\w.\-]+)")
_LISTED = re.compile(r"\b(branch_computations|called_computations)=\{([^}]*)\}")


def parse(text: str) -> tuple[dict[str, Computation], str]:
    """The computations by name, and the name of the entry."""
    computations: dict[str, Computation] = {}
    entry, current, root, name = "", "", "", ""
    lines: dict[str, str] = {}
    for line in text.splitlines():
        if not current:
            if header := _HEADER.match(line):
                current, lines, root, name = header[2], {}, "", ""
                entry = current if header[1] else entry
        elif _END.match(line):
            instructions = {key: _instruction(key, value) for key, value in lines.items()}
            computations[current], current = Computation(instructions, root), ""
        elif start := _START.match(line):
            name = start[2]
            root = name if start[1] else root
            lines[name] = line[start.end() :]
        elif name:  # kernels' metadata has line breaks
            lines[name] += line
    if not entry:
        raise ValueError("no ENTRY computation: this is not the text of an HLO module")
    return computations, entry


def _instruction(name: str, text: str) -> Instruction:
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    opening = text.index("(", end)
    closing = _closing(text, opening)
    inner = re.sub(r"/\*.*?\*/", "", text[opening + 1 : closing])
    # An operand may have its shape before its name.
    operands = tuple(part.split()[-1].lstrip("%") for part in _split(inner) if part.strip())
    return Instruction(name, text[:end], text[end:opening].strip(), inner, operands, text[closing + 1 :])


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


def shapes(text: str) -> list[Array]:
    """The arrays in a shape."""
    found = re.findall(r"\b([a-z]+\d*\w*)\[([\d,<= ]*)\]", text)
    return [(kind, tuple(int(d.strip("<= ")) for d in dims.split(",") if d)) for kind, dims in found]


def elements(shape: str) -> list[str]:
    """The elements of a tuple's shape, nested tuples whole; any other shape is its own only element."""
    return list(_split(shape[1:-1])) if shape.startswith("(") else [shape]


def written(arrays: list[Array]) -> tuple[str, ...]:
    """Arrays as `bf16[8,64]`."""
    return tuple(f"{kind}[{','.join(map(str, dims))}]" for kind, dims in arrays)


def size_bytes(array: Array) -> int:
    """Bytes of an array's elements, without padding; 0 of what is no array (`token[]`)."""
    kind, dims = array
    number = re.search(r"\d+", kind)
    bits = 8 if kind == "pred" else int(number[0]) if number else 0
    return -(-math.prod(dims) * bits // 8)


def devices(text: str) -> tuple[int, int]:
    """Replicas and partitions that a module runs on; their product is the number of its devices."""
    header = next((line for line in text.splitlines() if line.startswith("HloModule ")), "")
    found = (re.search(rf"\b{key}=(\d+)", header) for key in ("replica_count", "num_partitions"))
    replicas, partitions = (int(number[1]) if number else 1 for number in found)
    return replicas, partitions


def op_name(attributes: str) -> str | None:
    """The name that metadata gives an instruction: where in the traced program it comes from."""
    named = re.search(r'metadata=\{[^}]*?op_name="((?:[^"\\]|\\.)*)"', attributes)
    return named[1] if named else None


def called(attributes: str) -> dict[str, list[str]]:
    """The computations that an instruction calls, by the attribute that names them."""
    plain = re.split(r", (?:metadata|backend_config|frontend_attributes)=", attributes, maxsplit=1)[0]
    result = {key: [name] for key, name in _CALLED.findall(plain)}
    for key, names in _LISTED.findall(plain):
        result[key] = [name.strip().lstrip("%") for name in names.split(",") if name.strip()]
    return result


def numbers(attributes: str, key: str) -> list[int]:
    """The numbers of an attribute like `key={1,2}`; none where it is not there."""
    match = re.search(rf"\b{key}=\{{([\d,]*)\}}", attributes)
    return [int(number) for number in match[1].split(",") if number] if match else []
