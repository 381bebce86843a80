"""What all backends share: the products that a module's computation is written with, and weights in use by a scan."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mom_jax.products import product

# (rows [P, D], kernel [D, E], bias [E], multiplier [P, 1] or nothing) -> multiplier · (rows · kernel + bias), [P, E]
Linear = Callable[..., jax.Array]
# (linear, rows [P, D], multiplier [P, 1], weights) -> [P, E]: one module's computation for rows that chose it.
Body = Callable[[Linear, jax.Array, jax.Array, Any], jax.Array]


def linear(rows: jax.Array, kernel: jax.Array, bias: jax.Array, multiplier: jax.Array | None = None) -> jax.Array:
    """multiplier · (rows [P, D] · kernel [D, E] + bias [E]), accumulated in float32, in the dtype of the rows.

    A kernel that is not square may be given transposed, [E, D]. The multiplier acts on the rows, so that its gradient
    needs the product's input and not its result.
    """
    is_transposed = kernel.shape[0] != rows.shape[1]
    out = product(scale(rows, multiplier), kernel, is_transposed)
    return (out + biases(bias[None], multiplier)).astype(rows.dtype)


def weighted_linear(linear: Linear, rows: jax.Array, multiplier: jax.Array, weights: Any) -> jax.Array:
    """The `Body` of one linear map, weights = (kernel, bias)."""
    return linear(rows, *weights, multiplier)


def scale(rows: jax.Array, multiplier: jax.Array | None) -> jax.Array:
    """The rows times their multipliers, in the dtype of the rows."""
    return rows if multiplier is None else (rows.astype(jnp.float32) * multiplier).astype(rows.dtype)


def biases(bias: jax.Array, multiplier: jax.Array | None) -> jax.Array:
    """The biases [1 or P, E] times the rows' multipliers, in float32."""
    bias = bias.astype(jnp.float32)
    return bias if multiplier is None else bias * multiplier


class Pooled(NamedTuple):
    """The stacked weights of a pool while the steps of a scan use them.

    weights: what is multiplied with. sink: where the `blocked` backend leaves the weights' gradient: zeros of the same
    shapes in float32 that each use hands on, so that in the backward pass one buffer goes through all uses and each
    adds to it. None for other backends, whose gradient is the weights' own.
    """

    weights: Any
    sink: Any


def with_sink(weights: Any) -> Pooled:
    """`weights`, constant, and the sink of their gradient."""
    # Kernels that narrow are held transposed, so that no block has to transpose what it adds to their gradient.
    weights = jax.tree.map(lambda w: w.swapaxes(1, 2) if w.ndim == 3 and w.shape[1] > w.shape[2] else w, weights)
    return Pooled(jax.lax.stop_gradient(weights), _sink(weights))


@jax.custom_vjp
def _sink(weights: Any) -> Any:
    return jax.tree.map(lambda w: jnp.zeros(w.shape, jnp.float32), weights)


_sink.defvjp(lambda weights: (_sink(weights), None), lambda _, d: (d,))
