"""The routed matmul against a plain loop over tokens and choices, values and gradients."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from mom_jax import dispatch

D, E = 5, 4
BACKENDS = pytest.mark.parametrize("backend", ["dense", "blocked", "ragged"])


def choices(name):
    """(index [T, K], number of modules); an index of the number of modules or more is a null."""
    rng = np.random.default_rng(0)
    index, modules = {
        "one token": ([[1]], 3),
        "all null": (np.full((6, 2), 3), 3),
        "one module takes all": (np.full((37, 1), 1), 3),
        "one module": (np.arange(11)[:, None] % 2, 1),
        "k=1": (rng.integers(0, 4, (29, 1)), 3),
        "k=2 with nulls of several kinds": (rng.integers(0, 6, (13, 2)), 3),
        "k=3": (np.stack([rng.permutation(5)[:3] for _ in range(10)]), 4),
        "more tokens than a block": (np.stack([rng.permutation(4)[:2] for _ in range(300)]), 3),
        "more rows of a module than a block": (np.full((300, 1), 0), 2),
    }[name]
    return np.asarray(index, np.int32), modules


CASES = pytest.mark.parametrize(
    "name",
    [
        "one token",
        "all null",
        "one module takes all",
        "one module",
        "k=1",
        "k=2 with nulls of several kinds",
        "k=3",
        "more tokens than a block",
        "more rows of a module than a block",
    ],
)


def routed(x_TxD, kernel, bias, weight_TxK, index, modules, backend):
    plan = dispatch.make_plan(jnp.asarray(index), modules, backend)
    rows = dispatch.grouped_linear(dispatch.gather(x_TxD, plan), kernel, bias, plan, backend)
    return dispatch.combine(rows * dispatch.spread(weight_TxK, plan)[:, None], plan)


def plain(x_TxD, kernel, bias, weight_TxK, index, modules, d_y):
    """y and, by the product rule, the gradients of sum(y · d_y): loops over tokens and choices, in float64."""
    x, kernel, bias, weight, d_y = (np.asarray(a, np.float64) for a in (x_TxD, kernel, bias, weight_TxK, d_y))
    y = np.zeros((len(x), kernel.shape[2]))
    d_x, d_kernel, d_bias, d_weight = (np.zeros_like(a) for a in (x, kernel, bias, weight))
    for t, taken in enumerate(index):
        for k, m in enumerate(taken):
            if m >= modules:
                continue
            row = x[t] @ kernel[m] + bias[m]
            y[t] += weight[t, k] * row
            d_row = weight[t, k] * d_y[t]
            d_x[t] += kernel[m] @ d_row
            d_kernel[m] += np.outer(x[t], d_row)
            d_bias[m] += d_row
            d_weight[t, k] = row @ d_y[t]
    return y, (d_x, d_kernel, d_bias, d_weight)


def arrays(index, modules):
    rng = np.random.default_rng(1)
    shapes = (len(index), D), (modules, D, E), (modules, E), index.shape, (len(index), E)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


@BACKENDS
@CASES
def test_values_and_gradients_are_a_plain_loops(name, backend):
    index, modules = choices(name)
    *inputs, d_y = arrays(index, modules)

    @jax.jit
    def ours(inputs, d_y):
        y, backward = jax.vjp(lambda *a: routed(*a, index, modules, backend), *inputs)
        return y, backward(d_y)

    got = jax.tree.map(np.asarray, ours(inputs, d_y))
    want = plain(*inputs, index, modules, d_y)
    chex.assert_trees_all_close(got, jax.tree.map(np.float32, want), atol=1e-4, rtol=1e-5)


@BACKENDS
@CASES
def test_a_plan_puts_every_choice_in_a_row_of_its_module(name, backend):
    index, modules = choices(name)
    plan = jax.tree.map(np.asarray, dispatch.make_plan(jnp.asarray(index), modules, backend))
    rows, flat = len(plan.choice_P), index.reshape(-1)
    block = rows // len(plan.module_G)
    real = flat < modules
    slot = plan.slot_TxK.reshape(-1)
    assert (slot[~real] == rows).all()
    assert len(set(slot[real])) == real.sum()
    np.testing.assert_array_equal(plan.choice_P[slot[real]], np.flatnonzero(real))
    assert (plan.choice_P != len(flat)).sum() == real.sum()
    np.testing.assert_array_equal(plan.module_G[slot[real] // block], flat[real])
    np.testing.assert_array_equal(plan.sizes_N, np.bincount(flat[real], minlength=modules))
    # Rows are in the first blocks, and within a module in the order of the tokens.
    assert (slot[real] < plan.blocks * block).all()
    for m in range(modules):
        assert (np.diff(slot[flat == m]) > 0).all()


@BACKENDS
@CASES
def test_gradients_of_moving_rows(name, backend):
    """gather, combine and spread have gradients of their own: against those of plain indexing."""
    index, modules = choices(name)
    plan = dispatch.make_plan(jnp.asarray(index), modules, backend)
    rng = np.random.default_rng(2)
    x = jnp.asarray(rng.normal(size=(len(index), 2)), jnp.float32)
    rows = jnp.asarray(rng.normal(size=(len(plan.choice_P), 2)), jnp.float32)
    weight = jnp.asarray(rng.normal(size=index.shape), jnp.float32)

    def taken(array, at):
        return jnp.concatenate([array, jnp.zeros_like(array[:1])])[at]

    pairs = [
        (lambda a: dispatch.gather(a, plan), lambda a: taken(a, plan.choice_P // index.shape[1]), x),
        (lambda a: dispatch.combine(a, plan), lambda a: taken(a, plan.slot_TxK).sum(1), rows),
        (lambda a: dispatch.spread(a, plan), lambda a: taken(a.reshape(-1), plan.choice_P), weight),
    ]
    for ours, simple, argument in pairs:
        (got, backward), (want, simple_backward) = jax.vjp(ours, argument), jax.vjp(simple, argument)
        chex.assert_trees_all_close(got, want, atol=1e-6)
        d = jnp.asarray(rng.normal(size=want.shape), jnp.float32)
        chex.assert_trees_all_close(backward(d), simple_backward(d), atol=1e-5)


@BACKENDS
def test_gradients_by_finite_differences(backend):
    index, modules = choices("k=2 with nulls of several kinds")
    *inputs, _ = arrays(index, modules)

    def function(*inputs):  # check_grads passes numpy's arrays
        return routed(*map(jnp.asarray, inputs), index, modules, backend)

    check_grads(function, tuple(inputs), 1, ("rev",), atol=1e-2, rtol=1e-2)


@BACKENDS
def test_half_precision_accumulates_in_float32(backend):
    """A sum of 1 and 300 numbers too small to change a bfloat16 1."""
    index, x = np.zeros((4, 1), np.int32), jnp.ones((4, 301), jnp.bfloat16)
    kernel = jnp.full((2, 301, 1), 2.0**-9, jnp.bfloat16).at[:, 0].set(1)
    plan = dispatch.make_plan(jnp.asarray(index), 2, backend)
    rows = dispatch.grouped_linear(dispatch.gather(x, plan), kernel, jnp.zeros((2, 1), jnp.bfloat16), plan, backend)
    assert rows.dtype == jnp.bfloat16
    y = dispatch.combine(rows, plan).astype(jnp.float32)
    np.testing.assert_allclose(y, 1 + 300 / 512, rtol=2**-8)


def test_auto_is_blocked_on_a_cpu():
    assert dispatch.resolve("auto") == "blocked"
    assert dispatch.resolve("ragged") == "ragged"
    assert set(dispatch.BACKENDS) == {"dense", "blocked", "ragged"}
