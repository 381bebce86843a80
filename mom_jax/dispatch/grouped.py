"""Backends that hold all rows at once and multiply each by its module's matrix in one grouped product."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from mom_jax.dispatch.body import Body, Pooled, biases, scale
from mom_jax.dispatch.megablox import product as megablox
from mom_jax.dispatch.plan import Plan, combine, gather, spread

# (rows [P, D], kernel [N, D, E], plan) -> rows · kernel[module of the row], [P, E] in float32, multiplied in the dtype
# of the rows; what an empty row gets is not defined.
Product = Callable[[jax.Array, jax.Array, Plan], jax.Array]


def routed(
    body: Body, x_TxD: jax.Array, pool: Pooled, multiplier_TxK: jax.Array, plan: Plan, backend: str
) -> tuple[jax.Array, Pooled]:
    """Each token's sum of `body` over its choices, and the pool as it is."""

    def linear(rows: jax.Array, kernel: jax.Array, bias: jax.Array, multiplier: jax.Array | None = None) -> jax.Array:
        # A product with 0 and 1, whose gradient is one too, where indexing would scatter.
        own = jax.nn.one_hot(plan.module_P, kernel.shape[0], dtype=jnp.float32)
        bias = jnp.matmul(own, bias.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST)
        out = PRODUCTS[backend](scale(rows, multiplier), kernel, plan) + biases(bias, multiplier)
        # Kernels leave empty rows unwritten, going back too: there could be NaN, which no factor of 0 would remove.
        return jnp.where(real[:, None], out, 0).astype(rows.dtype)

    real = plan.choice_P < plan.slot_TxK.size
    multiplier = spread(multiplier_TxK, plan)[:, None]
    rows = body(linear, gather(x_TxD, plan), multiplier, pool.weights)
    return combine(rows, plan), pool


def _dense(rows: jax.Array, kernel: jax.Array, plan: Plan) -> jax.Array:
    own = jax.nn.one_hot(plan.module_P, kernel.shape[0], dtype=jnp.float32)
    every = jnp.einsum("pd,nde->pne", rows, kernel.astype(rows.dtype), preferred_element_type=jnp.float32)
    return jnp.einsum("pn,pne->pe", own, every, precision=jax.lax.Precision.HIGHEST)


def _ragged(rows: jax.Array, kernel: jax.Array, plan: Plan) -> jax.Array:
    return jax.lax.ragged_dot(rows, kernel.astype(rows.dtype), plan.sizes_N, preferred_element_type=jnp.float32)


def _tokamax(rows: jax.Array, kernel: jax.Array, plan: Plan) -> jax.Array:
    import tokamax

    return tokamax.ragged_dot(rows, kernel.astype(rows.dtype), plan.sizes_N, preferred_element_type=jnp.float32)


def _megablox(rows: jax.Array, kernel: jax.Array, plan: Plan) -> jax.Array:
    return megablox(rows, kernel, plan.sizes_N)


def _capacity(rows: jax.Array, kernel: jax.Array, plan: Plan) -> jax.Array:
    blocks = rows.reshape(kernel.shape[0], -1, rows.shape[1])
    product = jnp.einsum("ncd,nde->nce", blocks, kernel.astype(rows.dtype), preferred_element_type=jnp.float32)
    return product.reshape(rows.shape[0], -1)


PRODUCTS: dict[str, Product] = {
    "dense": _dense,
    "ragged": _ragged,
    "tokamax": _tokamax,
    "megablox": _megablox,
    "capacity": _capacity,
}
