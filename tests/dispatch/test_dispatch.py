"""The routed matmul against a plain loop over tokens and choices, values and gradients."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from mom_jax import ModelConfig, dispatch
from mom_jax.dispatch import blocked, grouped, plan
from mom_jax.fields import ConfigError
from mom_jax.platforms import building_for
from mom_jax.products import product

D, E = 5, 4
HERE = [backend for backend in dispatch.BACKENDS if dispatch.runs_here(backend)]
BACKENDS = pytest.mark.parametrize("backend", HERE)


def choices(name):
    """(index [T, K], number of modules); an index of the number of modules or more is a null.

    Cases of the same shape share what is compiled.
    """
    rng = np.random.default_rng(0)
    index, modules = {
        "one token": ([[1]], 3),
        "all null": (np.full((13, 2), 3), 3),
        "one module takes all": (np.full((37, 1), 1), 3),
        "one module": (np.arange(11)[:, None] % 2, 1),
        "k=1": (rng.integers(0, 4, (37, 1)), 3),
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


@functools.partial(jax.jit, static_argnums=(1, 2))
def make_plan(index, modules, backend):
    # Room for the case in which one module takes all.
    return dispatch.make_plan(jnp.asarray(index), modules, backend, modules if backend == "capacity" else None)


def routed(x_TxD, kernel, bias, weight_TxK, index, modules, backend):
    return dispatch.routed_linear(x_TxD, kernel, bias, weight_TxK, make_plan(index, modules, backend), backend)


@functools.partial(jax.jit, static_argnums=(3, 4))
def with_gradients(inputs, d_y, index, modules, backend):
    """y and the gradients of sum(y · d_y). What kernels leave unwritten is NaN; interpreted ones see to that
    themselves."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.lax, "empty", lambda shape, dtype: jnp.full(shape, jnp.nan, dtype))
        y, backward = jax.vjp(lambda *a: routed(*a, index, modules, backend), *inputs)
        return y, backward(d_y)


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
    got = jax.tree.map(np.asarray, with_gradients(inputs, d_y, index, modules, backend))
    want = plain(*inputs, index, modules, d_y)
    chex.assert_trees_all_close(got, jax.tree.map(np.float32, want), atol=1e-4, rtol=1e-5)


@jax.jit
def decoded(x, weights, weight, where):
    return dispatch.routed(
        dispatch.weighted_linear, x, dispatch.PooledWeights(weights, None), weight, where, "gathered"
    )[0]


@CASES
def test_decoding_on_accelerators_is_a_plain_loop(name):
    """By choice and by module; the weights that only a null could reach are NaN."""
    index, modules = choices(name)
    x, kernel, bias, weight, d_y = arrays(index, modules)
    unused = np.setdiff1d(np.arange(modules), index)
    kernel, bias = (a.at[unused].set(jnp.nan) for a in (kernel, bias))
    for tokens in (len(index), 1):
        part = index[:tokens]
        where = make_plan(part, modules, "gathered")
        chosen = dispatch.for_decoding(dispatch.PooledWeights((kernel, bias), None), tokens)
        assert chosen == ("gathered" if tokens <= 128 else None)
        y = decoded(x[:tokens], (kernel, bias), weight[:tokens], where)
        want, _ = plain(x[:tokens], jnp.nan_to_num(kernel), bias, weight[:tokens], part, modules, d_y[:tokens])
        np.testing.assert_allclose(y, want, atol=1e-5, rtol=1e-5)


def two_layers(linear, rows, multiplier, weights):
    first, last = weights
    return linear(jnp.tanh(linear(rows, *first)), *last, multiplier)


@BACKENDS
@pytest.mark.parametrize("steps", [1, 3])
def test_gradients_of_a_pool_that_a_scan_uses_again(backend, steps):
    """Against plain indexing of the weights; the body has two products, one of which narrows."""
    index, modules = choices("k=2 with nulls of several kinds")
    rng = np.random.default_rng(4)
    shapes = (((modules, D, 9), (modules, 9)), ((modules, 9, D), (modules, D)))
    weights = jax.tree.map(
        lambda shape: jnp.asarray(rng.normal(size=shape), jnp.float32), shapes, is_leaf=lambda s: isinstance(s[0], int)
    )
    x = jnp.asarray(rng.normal(size=(len(index), D)), jnp.float32)
    weight = jnp.asarray(rng.normal(size=index.shape), jnp.float32)

    def scanned(x, weights, weight):
        plan, pool = make_plan(index, modules, backend), dispatch.pooled(weights, backend, x.dtype)

        def body(carry, _):
            x, sink = carry
            used = dispatch.PooledWeights(pool.weights, sink)
            y, used = dispatch.routed(two_layers, x, used, weight, plan, backend)
            return (x + y, used.sink), None

        (x, _), _ = jax.lax.scan(jax.checkpoint(body), (x, pool.sink), None, length=steps)
        return x

    def simple(x, weights, weight):
        padded = jax.tree.map(lambda w: jnp.concatenate([w, jnp.zeros_like(w[:1])]), weights)
        own = jax.tree.map(lambda w: w[np.minimum(index, modules)], padded)

        def linear(rows, kernel, bias):
            return jnp.einsum("tkd,tkde->tke", rows, kernel) + bias

        for _ in range(steps):
            first, last = own
            inner = jnp.tanh(linear(jnp.repeat(x[:, None], index.shape[1], 1), *first))
            x = x + (weight[:, :, None] * linear(inner, *last)).sum(1)
        return x

    d = jnp.asarray(rng.normal(size=x.shape), jnp.float32)

    def value_and_gradients(function):
        def both(*inputs):
            y, backward = jax.vjp(function, *inputs)
            return y, backward(d)

        return jax.jit(both)(x, weights, weight)

    chex.assert_trees_all_close(value_and_gradients(scanned), value_and_gradients(simple), atol=2e-3, rtol=1e-4)


@BACKENDS
@CASES
def test_a_plan_puts_every_choice_in_a_row_of_its_module(name, backend):
    index, modules = choices(name)
    plan = jax.tree.map(np.asarray, make_plan(index, modules, backend))
    rows, flat = len(plan.choice_P), index.reshape(-1)
    real = flat < modules
    slot = plan.slot_TxK.reshape(-1)
    assert (slot[~real] == rows).all()
    assert len(set(slot[real])) == real.sum()
    np.testing.assert_array_equal(plan.choice_P[slot[real]], np.flatnonzero(real))
    assert (plan.choice_P != len(flat)).sum() == real.sum()
    np.testing.assert_array_equal(plan.module_P[slot[real]], flat[real])
    np.testing.assert_array_equal(plan.sizes_N, np.bincount(flat[real], minlength=modules))
    # Within a module rows are adjacent and in the order of the tokens.
    for m in range(modules):
        assert (np.diff(slot[flat == m]) == 1).all()
    if backend in ("triton", "mosaic"):
        assert (slot[real] // 128 * 128 < rows).all()
        for tile in range(0, rows, 128):
            assert len(set(flat[real][(slot[real] // 128) * 128 == tile])) <= 1
    if backend in ("ragged", "megablox"):
        np.testing.assert_array_equal(np.sort(slot[real]), np.arange(real.sum()))


@jax.jit
def visit_blocks(where):
    """The number of blocks. Each leaves (module, first row, rows) in SEEN."""

    def step(module, start, rows, count):
        jax.debug.callback(lambda *block: SEEN.append(tuple(map(int, block))), module, start, rows)
        return count + 1

    return blocked._for_each_block(where, step, jnp.int32(0))


SEEN = []


@pytest.mark.parametrize("loads", [[1, 0, 31], [64, 65, 129], [500, 0, 3], [0, 0, 0], [127, 129, 128], [96, 224, 4000]])
def test_blocks_cover_every_row_once_and_no_others(loads):
    nulls = 4360 - sum(loads)  # one size for all: compiled once
    index = np.repeat(np.arange(4), [*loads, nulls])[:, None].astype(np.int32)
    where = make_plan(np.random.default_rng(0).permutation(index), 3, "blocked")
    SEEN.clear()
    count = visit_blocks(where)
    jax.effects_barrier()
    seen = list(SEEN)
    assert len(seen) == count
    covered, module_P = np.zeros(len(where.choice_P), int), np.asarray(where.module_P)
    for module, start, size in seen:
        covered[start : start + size] += 1
        assert set(module_P[start : start + size]) == {module}
    used = np.asarray(where.choice_P) < index.size
    assert (covered <= 1).all()
    assert covered[used].all()
    # No module has as many rows to spare as the smallest block.
    spare = np.bincount(module_P[(covered == 1) & ~used], minlength=3)
    assert (spare < blocked.UNIT).all()


def taken(array, at):
    return jnp.concatenate([array, jnp.zeros_like(array[:1])])[at]


@jax.jit
def moved(x, rows, weight, where, cotangents):
    """[((ours, its gradient), (plain indexing, its gradient))] of gather, combine and spread."""
    choices = where.slot_TxK.shape[1]
    pairs = [
        (lambda a: plan.gather(a, where), lambda a: taken(a, where.choice_P // choices), x),
        (lambda a: plan.combine(a, where), lambda a: taken(a, where.slot_TxK).sum(1), rows),
        (lambda a: plan.spread(a, where), lambda a: taken(a.reshape(-1), where.choice_P), weight),
    ]
    result = []
    for (*both, argument), d in zip(pairs, cotangents, strict=True):
        values = [jax.vjp(function, argument) for function in both]
        result.append([(value, backward(d)) for value, backward in values])
    return result


@BACKENDS
@CASES
def test_gradients_of_moving_rows(name, backend):
    """gather, combine and spread have gradients of their own: against those of plain indexing."""
    index, modules = choices(name)
    where = make_plan(index, modules, backend)
    rng = np.random.default_rng(2)
    x = jnp.asarray(rng.normal(size=(len(index), 2)), jnp.float32)
    rows = jnp.asarray(rng.normal(size=(len(where.choice_P), 2)), jnp.float32)
    weight = jnp.asarray(rng.normal(size=index.shape), jnp.float32)
    shapes = rows.shape, x.shape, rows.shape[:1]
    cotangents = [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]
    for (got, gradient), (want, simple_gradient) in moved(x, rows, weight, where, cotangents):
        chex.assert_trees_all_close(got, want, atol=1e-6)
        chex.assert_trees_all_close(gradient, simple_gradient, atol=1e-5)


@BACKENDS
def test_gradients_by_finite_differences(backend):
    index, modules = choices("k=2 with nulls of several kinds")
    *inputs, _ = arrays(index, modules)

    @jax.jit
    def function(*inputs):  # check_grads passes numpy's arrays
        return routed(*map(jnp.asarray, inputs), index, modules, backend)

    check_grads(function, tuple(inputs), 1, ("rev",), atol=1e-2, rtol=1e-2)


@BACKENDS
def test_half_precision_accumulates_in_float32(backend):
    """A sum of 1 and 300 numbers too small to change a bfloat16 1."""
    index, x = np.zeros((4, 1), np.int32), jnp.ones((4, 301), jnp.bfloat16)
    kernel = jnp.full((2, 301, 1), 2.0**-9).at[:, 0].set(1)
    bias, weight = jnp.zeros((2, 1)), jnp.ones((4, 1))
    y = jax.jit(lambda *inputs: routed(*inputs, index, 2, backend))(x, kernel, bias, weight)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(y.astype(jnp.float32), 1 + 300 / 512, rtol=2**-8)


@BACKENDS
@pytest.mark.parametrize("name", ["k=2 with nulls of several kinds", "k=3", "one module", "all null"])
def test_half_precision_values_and_gradients(name, backend):
    """Within a few roundings to 8 bits of the plain loop on the same rounded inputs."""
    index, modules = choices(name)
    x, kernel, bias, weight, d_y = arrays(index, modules)
    x, d_y = x.astype(jnp.bfloat16), d_y.astype(jnp.bfloat16)
    kernel, bias = (a.astype(jnp.bfloat16).astype(jnp.float32) for a in (kernel, bias))
    got = with_gradients((x, kernel, bias, weight), d_y, index, modules, backend)
    got = jax.tree.map(lambda a: np.asarray(a, np.float32), got)
    want = jax.tree.map(
        np.float32, plain(*(a.astype(jnp.float32) for a in (x, kernel, bias, weight)), index, modules, d_y)
    )
    for have, expected in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(have, expected, rtol=0, atol=0.02 * max(1, np.abs(expected).max()))


def test_the_gradient_of_a_float32_kernel_is_not_rounded_to_the_rows_dtype():
    """2·256 and 1 are a sum that bfloat16 cannot hold."""
    rows = jnp.asarray([[256.0], [256.0], [1.0]], jnp.bfloat16)
    gradient = jax.grad(lambda kernel: product(rows, kernel).sum())(jnp.ones((1, 1), jnp.float32))
    np.testing.assert_array_equal(gradient, [[513.0]])


@pytest.mark.parametrize(
    ("factor", "kept"),
    [(1.0, [0, 1, 4]), (1.4, [0, 1, 2, 4]), (0.1, [0, 4])],  # room for 2, 3 and 1 rows
)
def test_capacity_drops_what_does_not_fit_the_later_tokens_first(factor, kept):
    index = jnp.asarray([[0], [0], [0], [0], [1], [2]], jnp.int32)  # module 2 of 3 is a null here

    @jax.jit
    def limited():
        where = dispatch.make_plan(index, 2, "capacity", factor * 2 / 3)
        arrays = (jnp.ones(shape) for shape in ((6, 1), (2, 1, 1), (2, 1), (6, 1)))
        return where, dispatch.routed_linear(*arrays, where, "capacity")

    where, y = limited()
    has_row = np.asarray(where.slot_TxK)[:, 0] < len(where.choice_P)
    np.testing.assert_array_equal(np.flatnonzero(has_row), kept)
    np.testing.assert_array_equal(y[:, 0], [2.0 * (t in kept) for t in range(6)])


@pytest.mark.parametrize(
    ("name", "capability", "dtype", "want"),
    [
        ("cpu", None, "float32", "blocked"),
        ("tpu", None, "bfloat16", "megablox"),
        ("gpu", (9, 0), "bfloat16", "mosaic"),
        ("gpu", (9, 0), "float32", "triton"),
        ("gpu", (8, 0), "bfloat16", "triton"),
        ("gpu", (10, 0), "bfloat16", "triton"),
        ("gpu", (7, 5), "bfloat16", "blocked"),
        ("gpu", None, "float32", "blocked"),
    ],
)
def test_auto_goes_by_platform(name, capability, dtype, want):
    with building_for(name, capability):
        assert dispatch.resolve(ModelConfig(dtype=dtype)) == want
        assert dispatch.resolve(ModelConfig(dtype=dtype, dispatch="ragged")) == "ragged"
        assert dispatch.resolve(ModelConfig(dtype=dtype, capacity_factor=1.5)) == "capacity"


@pytest.mark.parametrize(
    ("backend", "capability", "said"),
    [
        ("triton", (7, 5), "dispatch='triton': needs an NVIDIA GPU of compute capability 8.0 or higher.* has 7.5"),
        ("triton", None, "dispatch='triton': needs an NVIDIA GPU of compute capability 8.0 or higher.* has none"),
        ("mosaic", (8, 0), "dispatch='mosaic': needs an NVIDIA GPU of compute capability 9.0.* has 8.0"),
        ("mosaic", (10, 0), "dispatch='mosaic': needs an NVIDIA GPU of compute capability 9.0.* has 10.0"),
    ],
)
def test_a_backend_that_a_gpu_cannot_run_is_refused(backend, capability, said):
    with building_for("gpu", capability):
        assert not dispatch.runs_here(backend)
        with pytest.raises(ConfigError, match=said):
            dispatch.resolve(ModelConfig(dispatch=backend))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("backend", ["triton", "mosaic"])
@pytest.mark.parametrize("loads", [[130, 0, 128, 7], [0, 0, 0, 9]])
def test_kernels_on_whole_tiles(backend, dtype, loads):
    """Sizes that the kernels' blocks divide; a module without rows, one with a full tile, nulls: the four products by
    float64's on the same numbers, and the sinks of modules without rows as they were."""
    if not dispatch.runs_here(backend):
        pytest.skip(f"{backend}: this version of JAX does not interpret such kernels")
    index = np.random.default_rng(0).permutation(np.repeat(np.arange(4), loads))[:, None].astype(np.int32)
    where, depth, width = make_plan(index, 3, backend), 128, 256
    rng, rows = np.random.default_rng(1), len(where.choice_P)
    real, module = np.asarray(where.choice_P) < index.size, np.asarray(where.module_P)
    shapes = (rows, depth), (rows, width), (3, depth, width), (rows, 1)
    x, d, kernel, multiplier = (jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes)
    x, d, multiplier = (jnp.where(real[:, None], a, 0) for a in (x, d, multiplier.astype(jnp.float32)))
    sinks = tuple(jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((3, depth, width), (3, width)))
    products = grouped.PRODUCTS[backend]
    bias = jnp.asarray(rng.normal(size=(3, width)), jnp.float32)

    @jax.jit
    def ours(where):
        d_x, got_sinks = products.backward(x, d, kernel, multiplier, sinks, where)
        return (products.forward(x, kernel, bias, multiplier, where), d_x), got_sinks

    got, got_sinks = ours(where)

    wide = [np.asarray(a, np.float64) for a in (x, d, kernel, multiplier)]
    own = wide[2][np.minimum(module, 2)]
    own_bias = np.asarray(bias, np.float64)[np.minimum(module, 2)]
    want = np.einsum("pd,pde->pe", wide[0], own) + wide[3] * own_bias, np.einsum("pe,pde->pd", wide[1], own)
    modules = np.eye(3)[np.minimum(module, 2)] * real[:, None]
    added = (
        np.einsum("pn,pd,pe->nde", modules, wide[0], wide[1]),
        np.einsum("pn,pe->ne", modules * wide[3], wide[1]),
    )
    for have, expected in zip(got, want, strict=True):
        error = np.abs(np.asarray(have, np.float64) - expected)[real].max(initial=0)
        assert error <= (2**-7 if dtype == jnp.bfloat16 else 1e-5) * max(1, np.abs(expected).max())
    for have, sink, more in zip(got_sinks, sinks, added, strict=True):
        np.testing.assert_allclose(have, np.asarray(sink, np.float64) + more, rtol=1e-5, atol=1e-4)
        np.testing.assert_array_equal(have[1], sink[1])


@BACKENDS
def test_the_gradients_of_a_scans_steps_are_added_in_float32(backend):
    """512 and 1 from two steps in bfloat16: 513 is no bfloat16."""
    index = jnp.zeros((1, 1), jnp.int32)

    def loss(kernel):
        plan, pool = make_plan(index, 1, backend), dispatch.pooled((kernel, jnp.zeros((1, 1))), backend, jnp.bfloat16)

        def body(sink, x):
            used = dispatch.PooledWeights(pool.weights, sink)
            y, used = dispatch.routed(
                lambda linear, rows, m, w: linear(rows, *w), x, used, jnp.ones((1, 1)), plan, backend
            )
            return used.sink, y.astype(jnp.float32).sum()

        return jax.lax.scan(body, pool.sink, jnp.asarray([512.0, 1.0], jnp.bfloat16)[:, None, None])[1].sum()

    assert float(jax.jit(jax.grad(loss))(jnp.ones((1, 1, 1)))[0, 0, 0]) == 513


@pytest.mark.parametrize("backend", ["gathered", "branched"])
def test_a_null_has_no_row_in_decoding_either(backend):
    plan = dispatch.make_plan(jnp.array([[0, 3, 2]], jnp.int32), 3, backend)
    np.testing.assert_array_equal(plan.slot_TxK, [[0, 3, 2]])
    np.testing.assert_array_equal(plan.has_row, [[True, False, True]])
    np.testing.assert_array_equal(plan.sizes_N, [1, 0, 1])
