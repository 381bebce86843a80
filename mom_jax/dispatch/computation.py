"""What all backends share: the products that a module's computation is written with, and weights in use by a scan."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mom_jax.products import product

# (rows [P, D], kernel [D, E], bias [E], multiplier [P, 1] or nothing) -> multiplier · (rows · kernel + bias), [P, E]
Linear = Callable[..., jax.Array]
# (linear, rows [P, D], multiplier [P, 1], weights) -> [P, E]: one module's computation for rows that chose it.
ModuleComputation = Callable[[Linear, jax.Array, jax.Array, Any], jax.Array]


def linear(rows: jax.Array, kernel: jax.Array, bias: jax.Array, multiplier: jax.Array | None = None) -> jax.Array:
    """multiplier · (rows [P, D] · kernel [D, E] + bias [E]), accumulated in float32, in the dtype of the rows.

    The multiplier acts on the rows, so that its gradient needs the product's input and not its result.
    """
    out = product(scale(rows, multiplier), kernel)
    return (out + biases(bias[None], multiplier)).astype(rows.dtype)


def weighted_linear(linear: Linear, rows: jax.Array, multiplier: jax.Array, weights: Any) -> jax.Array:
    """The `ModuleComputation` of one linear map, weights = (kernel, bias)."""
    return linear(rows, *weights, multiplier)


def scale(rows: jax.Array, multiplier: jax.Array | None) -> jax.Array:
    """The rows times their multipliers, in the dtype of the rows."""
    return rows if multiplier is None else (rows.astype(jnp.float32) * multiplier).astype(rows.dtype)


def biases(bias: jax.Array, multiplier: jax.Array | None) -> jax.Array:
    """The biases [1 or P, E] times the rows' multipliers, in float32."""
    bias = bias.astype(jnp.float32)
    return bias if multiplier is None else bias * multiplier


class PooledWeights(NamedTuple):
    """The stacked weights of a pool while the steps of a scan use them.

    weights: what is multiplied with: kernels [N, D, E] in the compute dtype, cast once for all uses, biases [N, E] in
    float32; constants as far as differentiation knows.
    sink: where their gradient gathers: zeros of the same shapes in float32 that each use hands on, so that in the
    backward pass one buffer goes through all uses and each adds to it in place. Were the weights differentiated
    themselves, every step of a scan would make a gradient of the whole pool and add it to the sum. None where there
    are no gradients.
    """

    weights: Any
    sink: Any


def with_sink(weights: Any, dtype: Any) -> PooledWeights:
    """`weights`, float32, as constants with kernels, [N, D, E], in `dtype`, and the sink of their gradient."""
    cast = jax.tree.map(lambda w: w.astype(dtype) if w.ndim == 3 else w, weights)
    return PooledWeights(jax.lax.stop_gradient(cast), _sink(weights))


@jax.custom_vjp
def _sink(weights: Any) -> Any:
    return jax.tree.map(lambda w: jnp.zeros(w.shape, jnp.float32), weights)


_sink.defvjp(lambda weights: (_sink(weights), None), lambda _, d: (d,))
