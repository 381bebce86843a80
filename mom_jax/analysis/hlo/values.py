"""What an HLO computation computes as far as loops need it: integers, truth values (0 and 1) and tuples of them."""

import re
from collections.abc import Callable
from typing import Any

from mom_jax.analysis.hlo.text import Computation, Instruction, called

Value = Any  # None where it is not known

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


class Values:
    """What is known of one run of a computation: integers, truth values (0 and 1) and tuples."""

    def __init__(self, computations: dict[str, Computation], name: str, arguments: list[Value] | None):
        self.computations, self.computation, self.arguments = computations, computations[name], arguments
        self.memo: dict[str, Value] = {}

    def root(self) -> Value:
        """The computation's result."""
        return self.of(self.computation.root)

    def of(self, name: str) -> Value:
        """What an instruction gives."""
        if name not in self.memo:
            instruction = self.computation.instructions.get(name)
            self.memo[name] = None if instruction is None else self._evaluate(instruction)
        return self.memo[name]

    def _evaluate(self, instruction: Instruction) -> Value:
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
            (inner,) = (n for names in called(instruction.attributes).values() for n in names)
            return Values(self.computations, inner, [self.of(operand) for operand in operands]).root()
        if opcode == "compare" or opcode in _ARITHMETIC:
            values = [self.of(operand) for operand in operands]
            if not all(isinstance(value, int) for value in values):
                return None
            if opcode != "compare":
                return _ARITHMETIC[opcode](*values)
            direction = re.search(r"direction=(\w+)", instruction.attributes)
            return int(_COMPARE[direction[1]](*values)) if direction else None
        return None
