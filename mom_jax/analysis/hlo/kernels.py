"""Custom calls, and the FLOPs of the kernels that are known, from their shapes."""

import dataclasses
import json
import math
import re
from typing import Any

from mom_jax.analysis.hlo import gpu
from mom_jax.analysis.hlo.text import Array, Instruction, op_name, shapes, size_bytes, written


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

    @property
    def bytes(self) -> int:
        """Of operands and results of all runs."""
        arrays = [array for text in (*self.operands, *self.results) for array in shapes(text)]
        return self.count * sum(map(size_bytes, arrays))


def custom_call(call: Instruction, operand_shapes: list[str]) -> CustomCall:
    """What is known of a call of a library or a kernel, whose operands have these shapes."""
    target = re.search(r'custom_call_target="([^"]*)"', call.attributes)
    name = op_name(call.attributes) or re.sub(r"[.\d]+$", "", call.name)
    operands, results = [array for shape in operand_shapes for array in shapes(shape)], shapes(call.shape)
    kind = target[1] if target else ""
    flops = None
    if kind == "tpu_custom_call":
        flops = _kernel_flops(name, operands, results, call.attributes)
    elif (of_gpu := gpu.kernel_flops(kind, name, operands, results, call.attributes)) is not None:
        flops = of_gpu, of_gpu
    return CustomCall(kind, name, written(operands), written(results), 1, *(flops or (None, None)))


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
