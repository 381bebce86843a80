"""The chunked loss with a teacher against the plain one, values and gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import quick

from mom_jax.losses import IGNORE, chunked, cross_entropy
from mom_jax.losses.distillation import distilled_cross_entropy

B, L, D, V = 3, 10, 5, 17
WEIGHT, TEMPERATURE = 0.3, 2.5


def arrays(dtype=jnp.float32):
    """The teacher is narrower."""
    rng = np.random.default_rng(0)
    shapes = (B, L, D), (V, D), (B, L, D - 1), (V, D - 1)
    labels = rng.integers(0, V, (B, L))
    labels[0, 3:6] = IGNORE
    hidden, kernel, teacher, teacher_kernel = (rng.normal(size=shape) for shape in shapes)
    halves = (jnp.asarray(x, dtype) for x in (hidden, teacher))
    wholes = (jnp.asarray(x, dtype).astype(jnp.float32) for x in (kernel, teacher_kernel))
    (hidden, teacher), (kernel, teacher_kernel) = halves, wholes
    return hidden, kernel, teacher, teacher_kernel, jnp.asarray(labels, jnp.int32)


def plain(hidden, kernel, teacher, teacher_kernel, labels, weight=WEIGHT, temperature=TEMPERATURE):
    """(objective, nll, kl) from all logits."""
    logits, theirs = (
        jnp.einsum("bld,vd->blv", x.astype(jnp.float32), k) for x, k in ((hidden, kernel), (teacher, teacher_kernel))
    )
    nll, _ = cross_entropy(logits, labels)
    p, q = jax.nn.softmax(theirs / temperature), jax.nn.softmax(logits / temperature)
    kl = jnp.where(labels != IGNORE, (p * jnp.log(p / q)).sum(-1), 0).sum()
    return (1 - weight) * nll + weight * temperature**2 * kl, nll, kl


def differentiated(function, *inputs):
    """((0.7 · objective, (nll, kl)), gradients of the student's arrays)."""

    def scaled(*inputs):
        objective, *others = function(*inputs)
        return 0.7 * objective, others

    return quick(jax.value_and_grad(scaled, argnums=(0, 1), has_aux=True))(*inputs)


def with_teacher(*inputs, weight=WEIGHT, temperature=TEMPERATURE):
    return distilled_cross_entropy(*inputs, weight, temperature)


@pytest.mark.parametrize("chunk", [1, 8 * B * V])
def test_values_and_gradients_in_chunks(chunk, monkeypatch):
    """One token of each sequence at a time; chunks that do not divide the sequence."""
    monkeypatch.setitem(chunked.CHUNK_LOGITS, "cpu", chunk)
    inputs = arrays()
    want, got = (differentiated(function, *inputs) for function in (plain, with_teacher))
    for have, expected in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(have, expected, rtol=1e-5, atol=1e-5)
    # Not differentiated it is another program.
    np.testing.assert_allclose(with_teacher(*inputs), plain(*inputs), rtol=1e-5)


def test_the_teacher_itself_teaches_nothing_and_has_no_gradient():
    """A student of the same logits: no divergence, and with a weight of 1 no gradient; none for the teacher ever."""
    hidden, kernel, teacher, teacher_kernel, labels = arrays()
    (_, (nll, kl)), gradients = differentiated(
        functools.partial(with_teacher, weight=1.0), hidden, kernel, hidden, kernel, labels
    )
    np.testing.assert_allclose(kl, 0.0, atol=1e-5)
    assert nll > 1
    assert max(float(jnp.abs(g).max()) for g in gradients) < 1e-5
    of_teacher = jax.grad(lambda *x: with_teacher(hidden, kernel, *x, labels)[0], argnums=(0, 1))
    assert not any(jnp.any(g) for g in of_teacher(teacher, teacher_kernel))


def test_half_precision_sums_in_float32():
    inputs = arrays(jnp.bfloat16)
    (value, others), (d_hidden, d_kernel) = differentiated(with_teacher, *inputs)
    assert (d_hidden.dtype, d_kernel.dtype) == (jnp.bfloat16, jnp.float32)
    (want, others_want), (_, d_want) = differentiated(plain, *inputs)
    np.testing.assert_allclose((value, *others), (want, *others_want), rtol=1e-6)
    np.testing.assert_allclose(d_kernel, d_want, atol=0.02 * np.abs(d_want).max())


def test_the_logits_of_all_tokens_never_exist(monkeypatch):
    monkeypatch.setitem(chunked.CHUNK_LOGITS, "cpu", 4 * B * V)
    step = jax.jit(jax.grad(lambda *inputs: with_teacher(*inputs)[0], argnums=(0, 1)))
    text = step.lower(*arrays()).as_text()
    assert f"{2 * B}x{V}xf32" in text
    assert f"{B * L}x{V}xf32" not in text
    assert f"{B}x{L}x{V}xf32" not in text
