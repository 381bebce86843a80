"""FLOPs of what a GPU's program calls: cuBLAS, attention by cuDNN or JAX's kernel, and this library's kernels."""

import math
import re

from mom_jax.analysis.hlo.text import Array

PALLAS = ("__gpu$xla.gpu.triton", "mosaic_gpu", "mosaic_gpu_v2")  # the targets of Pallas kernels


def kernel_flops(target: str, name: str, operands: list[Array], results: list[Array], attributes: str) -> int | None:
    """FLOPs of a run of a call, None where it is not known. name: its op_name.

    A grouped product counts all rows that it has room for, of which routing leaves less than a tile a module unused;
    attention with a causal mask counts half of the square.
    """
    if target.startswith("__cublas"):
        return _matmul(operands, results, attributes)
    if target.startswith("__cudnn$fmha"):
        return _attention(target, operands, attributes)
    if target in PALLAS and re.search(r"grouped_(product|gradient)", name):
        return _grouped(operands)
    if target in PALLAS and (kernel := re.search(r"mha_(forward|backward|preprocess)", name)):
        batch, length, heads, width = operands[0][1]
        # Of half of the square. Backward there are three gradients, and each of two loops makes the scores and the
        # gradient of the probabilities for itself.
        return {"forward": 2, "backward": 7, "preprocess": 0}[kernel[1]] * batch * heads * length**2 * width
    return None


def _matmul(operands: list[Array], results: list[Array], attributes: str) -> int | None:
    found = re.search(r'"lhs_contracting_dimensions":\s*\[([^\]]*)\]', attributes)
    if found is None:
        return None
    contracted = math.prod(operands[0][1][int(axis)] for axis in re.findall(r"\d+", found[1]))
    return 2 * math.prod(results[0][1]) * contracted


def _attention(target: str, operands: list[Array], attributes: str) -> int | None:
    scores = re.search(r'"intermediate_tensor_shape":\s*\{[^{}]*?"dimensions":\s*\[([^\]]*)\]', attributes)
    if scores is None:
        return None
    pairs = math.prod(int(size) for size in re.findall(r"\d+", scores[1]))
    # Two products forward; backward the scores once more, and two gradients of each of the two products.
    products = 5 if "Backward" in target else 2
    causal = re.search(r'"mask_type":\s*"[A-Z_]*CAUSAL', attributes) is not None
    return 2 * products * pairs * operands[0][1][-1] // (2 if causal else 1)


def _grouped(operands: list[Array]) -> int | None:
    matrices = [dims for _, dims in operands if len(dims) == 2]
    stacks = [dims for _, dims in operands if len(dims) == 3]
    if not matrices or not stacks:
        return None
    rows, (_, depth, width) = matrices[0][0], stacks[0]
    return 2 * rows * depth * width
