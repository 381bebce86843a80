"""How alike the modules of a pool are: their weights, what they make of the same inputs, and where their attention
looks. Modules are counted through all chunks, M = S·N; a mean is taken over the pairs within a chunk's pool.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mom_jax.attention.plain import exponentials
from mom_jax.cache import view_of
from mom_jax.config import SIDES, ModelConfig, Side
from mom_jax.layers import ACTIVATIONS, SublayerWeights, fold, normalise
from mom_jax.sharding import make_mesh, replicated

# Bounds of what is compared, whatever the model: tokens that modules attend to, vectors whose outputs are compared, and
# queries whose patterns are.
TOKENS, VECTORS, QUERIES = 2048, 512, 128


@dataclasses.dataclass(frozen=True)
class Similarity:
    """Of the modules of one side; 1 is alike. modules: N, in each chunk's pool.

    weights: [M, M], the cosine of all of a module's weights as they compute, its layer norm folded in. outputs: [M, M],
    debiased linear CKA of what modules add to the residual stream, for the same inputs. patterns: [M, M], of attention:
    how alike the heads look over the text (`pattern_similarity`); None for FFNs.
    """

    modules: int
    weights: np.ndarray
    outputs: np.ndarray
    patterns: np.ndarray | None = None

    def mean(self, table: np.ndarray) -> float | None:
        """The mean over pairs of two modules of one pool; None where a pool has one module only."""
        chunk = np.arange(len(table)) // self.modules
        pairs = (chunk[:, None] == chunk[None]) & ~np.eye(len(table), dtype=bool)
        return float(table[pairs].mean()) if pairs.any() else None


def similarity(
    params: dict[str, Any],
    config: ModelConfig,
    inputs: Any,
    batch: Mapping[str, Any],
    *,
    mesh: Mesh | None = None,
) -> dict[Side, Similarity]:
    """The similarity of the modules of both sides, of a vanilla model's layers too; empty without chunks.

    inputs: [B, L, D] float32, the residual stream of `observe(..., inputs=True)`; the first rows are used, up to
    `TOKENS` tokens or one row. batch: what it was made of: `mask` and `segment_ids`, [B, L], where there are any.
    mesh: where the parameters lie, by default on one device.
    """
    if not config.num_chunks:
        return {}
    length = inputs.shape[1]
    rows = min(inputs.shape[0], max(1, TOKENS // length))
    real, segments = np.ones((rows, length), bool), np.zeros((rows, length), np.int32)
    if "mask" in batch:
        real &= np.asarray(batch["mask"][:rows], bool)
    if "segment_ids" in batch:
        segments = np.asarray(batch["segment_ids"][:rows], np.int32)
        real &= segments > 0
    places = np.unique(np.linspace(0, length - 1, min(length, max(1, VECTORS // rows))).astype(np.int32))
    given = np.asarray(inputs[:rows]), real, segments, places
    pools = {side: [params["chunks"][i][side] for i in range(config.num_chunks)] for side in SIDES}
    # No more of the configuration than is read: a vanilla model and its MoM share what is compiled.
    reads = _Reads(config.num_heads, config.activation, config.layer_norm_epsilon)
    compared = jax.device_get(_compared(pools, *given, reads=reads, mesh=mesh or make_mesh()))
    counts = real[:, places].reshape(-1)
    result: dict[Side, Similarity] = {}
    for side in SIDES:
        found = compared[side]
        outputs = found["outputs"][:, counts]
        patterns = pattern_similarity(found["heads"], config.num_heads) if "heads" in found else None
        result[side] = Similarity(config.modules(side), cosine(found["weights"]), cka(outputs), patterns)
    return result


def cosine(gram: np.ndarray) -> np.ndarray:
    """The cosines of vectors from their products [M, M]; a vector of zeros is like itself only."""
    gram = np.asarray(gram, np.float64)
    norm = np.sqrt(np.maximum(np.diag(gram), 0.0))
    scale = norm[:, None] * norm[None]
    table = np.divide(gram, scale, out=np.zeros_like(gram), where=scale > 0)
    np.fill_diagonal(table, 1.0)
    return np.clip(table, -1.0, 1.0)


def linear_cka(x_TxD: np.ndarray, y_TxE: np.ndarray, *, debiased: bool = True) -> float:
    """Linear centred kernel alignment of two representations of the same T examples (Kornblith et al., arXiv
    1905.00414, section 3): 1 where they are alike up to rotation, scale and shift.

    debiased: with the unbiased estimator of HSIC (Song et al., JMLR 13, 2012, eq. 5), which is near 0 for independent
    representations however wide they are, and may lie a little below; it needs 4 examples. The plain estimator is
    large for few examples: about D / T.
    """
    return float(_alignment([_kernel(x_TxD), _kernel(y_TxE)], debiased)[0, 1])


def cka(outputs_MxTxD: np.ndarray) -> np.ndarray:
    """The debiased linear CKA of each pair of M representations of the same T examples, [M, M]; all nan but the
    diagonal with fewer than 4 examples."""
    return _alignment([_kernel(x) for x in outputs_MxTxD], True)


def _kernel(x: np.ndarray) -> np.ndarray:
    x = np.asarray(x, np.float64)
    x = x - x.mean(0)
    return x @ x.T


def _alignment(kernels: list[np.ndarray], debiased: bool) -> np.ndarray:
    """CKA from centred kernels [T, T]."""
    stack = np.stack(kernels)
    count = stack.shape[1]
    if debiased and count < 4:
        table = np.full((len(stack), len(stack)), np.nan)
        np.fill_diagonal(table, 1.0)
        return table
    if debiased:
        stack[:, np.arange(count), np.arange(count)] = 0.0
    flat, sums = stack.reshape(len(stack), -1), stack.sum(2)
    hsic = flat @ flat.T
    if debiased:
        total = sums.sum(1)
        hsic += total[:, None] * total[None] / ((count - 1) * (count - 2)) - 2 / (count - 2) * (sums @ sums.T)
    return cosine(hsic)


def pattern_similarity(gram: np.ndarray, heads: int) -> np.ndarray:
    """How alike modules' attention looks, [M, M], from the products [M·h, M·h] of their heads' patterns.

    A head's pattern is its probabilities over the text less those of even attention; two heads are as alike as the
    cosine of their patterns. Of two modules each head is matched with the other's most similar one, both ways, and the
    mean taken: the same heads in another order are alike.
    """
    modules = len(gram) // heads
    pairs = cosine(gram).reshape(modules, heads, modules, heads)
    best = pairs.max(3).mean(1)
    table = (best + best.T) / 2
    np.fill_diagonal(table, 1.0)
    return table


class _Reads(NamedTuple):
    """What of a configuration modules compute with."""

    num_heads: int
    activation: str
    epsilon: float


@functools.partial(jax.jit, static_argnames=("reads", "mesh"))
def _compared(
    pools: dict[Side, list[dict[str, jax.Array]]],
    x: jax.Array,
    real: jax.Array,
    segments: jax.Array,
    places: jax.Array,
    *,
    reads: _Reads,
    mesh: Mesh,
) -> dict[Side, dict[str, jax.Array]]:
    """By side: `weights`, the products of modules' weights; `outputs` [M, B·Q, D] at Q places of each row of x
    [B, L, D]; of attention `heads`, the products of the heads' patterns at some of the places. pools: of each chunk the
    stacked parameters."""
    normed = normalise(x, reads.epsilon)
    visible = view_of(real, True, segments, None)[0].visible & real[:, :, None]
    result: dict[Side, dict[str, jax.Array]] = {}
    for side in SIDES:
        weights = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *(_folded(own, side) for own in pools[side]))
        products = [jnp.einsum("i...,j...->ij", leaf, leaf) for leaf in weights]
        gram = functools.reduce(jnp.add, products)
        if side == "attention":
            one = functools.partial(_attention, x=normed, visible=visible, places=places, heads=reads.num_heads)
            outputs, patterns = _each(one, weights, mesh)
            # Padding sees nothing here and has no pattern.
            flat = patterns.reshape(-1, patterns[0, 0].size)
            result[side] = {"weights": gram, "outputs": outputs, "heads": flat @ flat.T}
        else:
            vectors = normed[:, places].reshape(-1, x.shape[-1])
            outputs = _each(functools.partial(_ffn, x=vectors, activation=reads.activation), weights, mesh)
            result[side] = {"weights": gram, "outputs": outputs}
    return jax.lax.with_sharding_constraint(result, replicated(mesh))


def _folded(pool: dict[str, jax.Array], side: Side) -> SublayerWeights:
    """A pool's modules as they compute, whole: GSPMD sees to where they lie."""
    first = "qkv" if side == "attention" else "in"
    kernel, bias = pool[f"{first}_kernel"], pool[f"{first}_bias"]
    kernel, gain = fold(pool["norm_scale"], pool["norm_bias"], kernel.reshape(*kernel.shape[:2], -1))
    return SublayerWeights(kernel, bias.reshape(gain.shape) + gain, pool["out_kernel"], pool["out_bias"])


def _each(function: Any, weights: SublayerWeights, mesh: Mesh) -> Any:
    """`function` of each module: one after the other, or, where devices divide the modules, at once."""
    return jax.vmap(function)(weights) if mesh.shape["module"] > 1 else jax.lax.map(function, weights)


def _ffn(weights: SublayerWeights, *, x: jax.Array, activation: str) -> jax.Array:
    inner = ACTIVATIONS[activation](x @ weights.first_kernel + weights.first_bias[None])
    return inner @ weights.last_kernel + weights.last_bias[None]


def _attention(
    weights: SublayerWeights, *, x: jax.Array, visible: jax.Array, places: jax.Array, heads: int
) -> tuple[jax.Array, jax.Array]:
    """One module on normalised x [B, L, D]: (what it adds at the places, [B·Q, D]; its heads' patterns less even
    attention, [h, B, some of Q, L])."""
    qkv = x @ weights.first_kernel + weights.first_bias[None, None]
    q, k, v = (t.reshape(*t.shape[:2], heads, -1).swapaxes(1, 2) for t in jnp.split(qkv, 3, -1))
    seen = visible[:, places]
    p, total, _ = exponentials(q[:, :, places], k, seen)
    p = p / total
    output = jnp.einsum("bhqm,bhmd->bqhd", p, v).reshape(-1, x.shape[-1])
    every = max(1, x.shape[0] * len(places) // QUERIES)
    count = seen.astype(jnp.float32)
    even = count / jnp.maximum(count.sum(-1, keepdims=True), 1)
    patterns = (p - even[:, None])[:, :, ::every].swapaxes(0, 1)
    return output @ weights.last_kernel + weights.last_bias[None], patterns
