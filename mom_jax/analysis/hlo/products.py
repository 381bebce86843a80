"""FLOPs of HLO's own products, by opcode: (instruction, dimensions of its operands) -> FLOPs."""

import math
import re

import numpy as np

from mom_jax.analysis.hlo.text import Instruction, numbers, shapes


def _dot(dot: Instruction, operands: list[tuple[int, ...]]) -> int:
    contracted = math.prod(operands[0][axis] for axis in numbers(dot.attributes, "lhs_contracting_dims"))
    return 2 * math.prod(shapes(dot.shape)[0][1]) * contracted


def _ragged_dot(dot: Instruction, operands: list[tuple[int, ...]]) -> int:
    """As if every row were in a group: each element of the left side meets each column of its group's matrix."""
    lhs, rhs = operands[:2]
    keys = ("rhs_contracting_dims", "rhs_batch_dims", "rhs_group_dims")
    shared = [axis for key in keys for axis in numbers(dot.attributes, key)]
    return 2 * math.prod(lhs) * math.prod(size for axis, size in enumerate(rhs) if axis not in shared)


def _convolution(convolution: Instruction, operands: list[tuple[int, ...]]) -> int:
    """Padding and the holes of a dilated operand cost nothing: on the TPU a batched product is such a convolution."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", convolution.attributes)
    if labels is None:
        raise ValueError(f"convolution without dim_labels: {convolution.name}")
    arrays = zip(labels.groups(), (*operands[:2], shapes(convolution.shape)[0][1]), strict=True)
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


PRODUCTS = {"dot": _dot, "convolution": _convolution, "ragged-dot": _ragged_dot}
