"""The routed computation by grouped products: all rows, each multiplied by its module's matrix.

A backend is such a product and its gradients. The gradient of the weights is added to the sink that the pool's uses
hand on (`PooledWeights.sink`).
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mom_jax.dispatch import blocked, megablox, mosaic, triton
from mom_jax.dispatch.computation import ModuleComputation, PooledWeights, biases, scale
from mom_jax.dispatch.plan import Plan, capacity_plan, combine, gather, sort_plan, spread
from mom_jax.platforms import platform

Product = Callable[[jax.Array, jax.Array, Plan], jax.Array]


class Products(NamedTuple):
    """A backend's grouped products; matrices and rows have the compute dtype, sums are float32.

    forward: (rows [P, D], kernel [N, D, E], bias [N, E] float32, multiplier [P, 1] float32 or None, plan) -> rows ·
        kernel[module of the row] + multiplier · bias[module of the row], [P, E] in the dtype of the rows
    backward: (rows [P, D], d [P, E], kernel [N, D, E], multiplier [P, 1] or None, sinks, plan) -> d · kernel[module of
        the row]ᵀ, [P, D] in the dtype of the rows; and the sinks of a kernel [N, D, E] and a bias [N, E], float32, plus
        rowsᵀ · d and multiplierᵀ · d, module by module

    Rows that no choice has may be left unwritten where the backend's own products do not read them: there could be NaN,
    which no factor of 0 would remove. Others come out finite, and with d of 0, so that they add nothing to a gradient.
    """

    forward: Callable[..., jax.Array]
    backward: Callable[..., tuple[jax.Array, tuple]]


class _Held:
    """A weight while a `ModuleComputation` uses it: its value, and the sink as its last use has left it."""

    def __init__(self, value: jax.Array, sink: jax.Array | None):
        self.value, self.sink = value, sink


def make_plan(index_TxK: jax.Array, num_modules: int, backend: str, capacity_factor: float | None = None) -> Plan:
    """The plan of choices for a backend of `PRODUCTS`."""
    if backend == "capacity":
        assert capacity_factor is not None
        return capacity_plan(index_TxK, num_modules, capacity_factor)
    if backend == "blocked":
        return sort_plan(index_TxK, num_modules, blocked.UNIT)
    if backend in ("triton", "mosaic"):
        return sort_plan(index_TxK, num_modules, triton.TILE)
    return sort_plan(index_TxK, num_modules, multiple=megablox.TILE)


def routed(
    computation: ModuleComputation,
    x_TxD: jax.Array,
    pool: PooledWeights,
    multiplier_TxK: jax.Array,
    plan: Plan,
    backend: str,
) -> tuple[jax.Array, PooledWeights]:
    """Each token's sum of `computation` over its choices, [T, E], and the pool for its next use."""
    held = jax.tree.map(_Held, pool.weights, pool.sink or jax.tree.map(lambda _: None, pool.weights))

    def linear(rows: jax.Array, kernel: _Held, bias: _Held, multiplier: jax.Array | None = None) -> jax.Array:
        sinks = kernel.sink, bias.sink
        out, (kernel.sink, bias.sink) = _linear(
            backend, scale(rows, multiplier), (kernel.value, bias.value), sinks, multiplier, plan
        )
        return out

    multiplier = spread(multiplier_TxK, plan)[:, None]
    rows = computation(linear, gather(x_TxD, plan), multiplier, held)
    sink = None if pool.sink is None else jax.tree.map(lambda weight: weight.sink, held)
    return combine(rows, plan), PooledWeights(pool.weights, sink)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _linear(
    backend: str, rows: jax.Array, weights: tuple, sinks: tuple, multiplier: jax.Array | None, plan: Plan
) -> tuple[jax.Array, tuple]:
    """(rows · kernel + multiplier · bias in the dtype of the rows; the sinks as they are)."""
    return PRODUCTS[backend].forward(rows, *weights, multiplier, plan), sinks


def _linear_forward(backend: str, rows: jax.Array, weights: tuple, sinks: tuple, *rest: Any) -> tuple:
    return _linear(backend, rows, weights, sinks, *rest), (rows, weights, *rest)


def _linear_backward(backend: str, residual: tuple, gradients: tuple) -> tuple:
    rows, (kernel, bias), multiplier, plan = residual
    d, sinks = gradients
    d_rows, sinks = PRODUCTS[backend].backward(rows, d, kernel, multiplier, sinks, plan)
    return d_rows, None, sinks, None if multiplier is None else _times_bias(d, bias, plan), None


_linear.defvjp(_linear_forward, _linear_backward)


def _indexed(x_N: jax.Array, plan: Plan) -> jax.Array:
    """x[module of the row]. TPUs are slow at indexing and fast at products: one with 0 and 1."""
    if platform() == "gpu":
        return x_N[plan.module_P]
    return jnp.matmul(_modules(plan), x_N, precision=jax.lax.Precision.HIGHEST)


def _times_bias(d: jax.Array, bias: jax.Array, plan: Plan) -> jax.Array:
    """d [P, E] times the bias [N, E] of each row's module, [P, 1] in float32: the gradient of the multiplier by what
    it multiplies beside the rows."""
    wide = d.astype(jnp.float32)
    if platform() == "gpu":
        return (wide * _indexed(bias, plan)).sum(1, keepdims=True)
    every = jnp.einsum("pe,ne->pn", wide, bias, precision=jax.lax.Precision.HIGHEST)
    return (every * _modules(plan)).sum(1, keepdims=True)


def _plus_bias(forward: Product) -> Callable[..., jax.Array]:
    """`Products.forward` by a product that knows kernels only."""

    def with_bias(
        rows: jax.Array, kernel: jax.Array, bias: jax.Array, multiplier: jax.Array | None, plan: Plan
    ) -> jax.Array:
        out = forward(rows, kernel, plan).astype(jnp.float32) + biases(_indexed(bias, plan), multiplier)
        return out.astype(rows.dtype)

    return with_bias


def _both(backward: Product, gradient: Callable[..., tuple]) -> Callable[..., tuple[jax.Array, tuple]]:
    """`Products.backward` of a product for the gradient of the rows and one for that of the weights."""

    def of_both(
        rows: jax.Array, d: jax.Array, kernel: jax.Array, multiplier: jax.Array | None, sinks: tuple, plan: Plan
    ) -> tuple[jax.Array, tuple]:
        return backward(d, kernel, plan).astype(rows.dtype), gradient(sinks, rows, d, multiplier, plan)

    return of_both


def _add_bias(gradient: Callable[[jax.Array, jax.Array, jax.Array, Plan], jax.Array]) -> Callable[..., tuple]:
    """The gradient of the weights by a product that knows kernels only."""

    def of_both(sinks: tuple, rows: jax.Array, d: jax.Array, multiplier: jax.Array | None, plan: Plan) -> tuple:
        kernel_sink, bias_sink = sinks
        # Rows that a kernel has left unwritten would not vanish in a product with 0.
        written = jnp.where((plan.choice_P < plan.slot_TxK.size)[:, None], d, 0)
        if multiplier is not None:
            written = written.astype(jnp.float32) * multiplier
        # 0 and 1 are exact in any dtype, and sums are float32: there is no need to widen d.
        modules = _modules(plan).astype(written.dtype)
        sums = jnp.einsum(
            "pn,pe->ne",
            modules,
            written,
            precision=jax.lax.Precision.HIGHEST,
            preferred_element_type=jnp.float32,
        )
        return gradient(kernel_sink, rows, d, plan), bias_sink + sums

    return of_both


def _modules(plan: Plan) -> jax.Array:
    """[P, N] float32: 1 at each row's module."""
    return jax.nn.one_hot(plan.module_P, plan.sizes_N.shape[0], dtype=jnp.float32)


def _dense(rows: jax.Array, kernel: jax.Array, plan: Plan) -> jax.Array:
    every = jnp.einsum("pd,nde->pne", rows, kernel, preferred_element_type=jnp.float32)
    return jnp.einsum("pn,pne->pe", _modules(plan), every, precision=jax.lax.Precision.HIGHEST)


def _dense_gradient(sink: jax.Array, rows: jax.Array, d: jax.Array, plan: Plan) -> jax.Array:
    own = _modules(plan).astype(rows.dtype)[:, :, None] * rows[:, None]
    return sink + jnp.einsum("pnd,pe->nde", own, d, preferred_element_type=jnp.float32)


def _ragged(rows: jax.Array, kernel: jax.Array, plan: Plan) -> jax.Array:
    return jax.lax.ragged_dot(rows, kernel, plan.sizes_N, preferred_element_type=jnp.float32)


def _ragged_gradient(sink: jax.Array, rows: jax.Array, d: jax.Array, plan: Plan) -> jax.Array:
    numbers = jax.lax.RaggedDotDimensionNumbers(
        dot_dimension_numbers=(((0,), (0,)), ((), ())), lhs_ragged_dimensions=[0], rhs_group_dimensions=[]
    )
    return sink + jax.lax.ragged_dot_general(rows, d, plan.sizes_N, numbers, preferred_element_type=jnp.float32)


def _capacity(rows: jax.Array, kernel: jax.Array, plan: Plan) -> jax.Array:
    blocks = rows.reshape(kernel.shape[0], -1, rows.shape[1])
    product = jnp.einsum("ncd,nde->nce", blocks, kernel, preferred_element_type=jnp.float32)
    return product.reshape(rows.shape[0], -1)


def _capacity_gradient(sink: jax.Array, rows: jax.Array, d: jax.Array, plan: Plan) -> jax.Array:
    rows, d = (x.reshape(sink.shape[0], -1, x.shape[1]) for x in (rows, d))
    return sink + jnp.einsum("ncd,nce->nde", rows, d, preferred_element_type=jnp.float32)


def _by_transposed_kernel(forward: Product) -> Product:
    """The gradient of the rows by a `forward` that knows no transposed kernels."""
    return lambda d, kernel, plan: forward(d, kernel.swapaxes(1, 2), plan)


def _products(forward: Product, backward: Product, gradient: Callable[..., jax.Array]) -> Products:
    """Of products that know kernels only."""
    return Products(_plus_bias(forward), _both(backward, _add_bias(gradient)))


PRODUCTS = {
    "blocked": Products(blocked.forward, blocked.backward),
    "dense": _products(_dense, _by_transposed_kernel(_dense), _dense_gradient),
    "ragged": _products(_ragged, _by_transposed_kernel(_ragged), _ragged_gradient),
    "megablox": _products(megablox.forward, megablox.backward, megablox.gradient),
    "triton": Products(_plus_bias(triton.forward), _both(triton.backward, triton.gradient)),
    "mosaic": Products(_plus_bias(mosaic.forward), _both(mosaic.backward, triton.gradient)),
    "capacity": _products(_capacity, _by_transposed_kernel(_capacity), _capacity_gradient),
}
