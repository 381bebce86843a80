"""The chunked loss of the head against the plain one, values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mom_jax.losses import IGNORE, cross_entropy
from mom_jax.losses import chunked as module

B, L, D, V = 3, 10, 5, 17


def arrays(dtype=jnp.float32):
    rng = np.random.default_rng(0)
    hidden, kernel = rng.normal(size=(B, L, D)), rng.normal(size=(V, D))
    labels = rng.integers(0, V, (B, L))
    labels[0, 3:6] = IGNORE
    labels[2, 0] = V - 1
    return jnp.asarray(hidden, dtype), jnp.asarray(kernel, jnp.float32), jnp.asarray(labels, jnp.int32)


@pytest.mark.parametrize("chunk", [1, V, 4 * B * V, 7 * B * V, 1 << 20])
def test_values_and_gradients_in_chunks(chunk, monkeypatch):
    """One token of each sequence at a time; an even and an uneven number of chunks; all at once."""
    monkeypatch.setitem(module.CHUNK_LOGITS, "cpu", chunk)
    hidden, kernel, labels = arrays()

    def plain(hidden, kernel):
        return cross_entropy(jnp.einsum("bld,vd->blv", hidden, kernel), labels)[0] * 0.7

    def ours(hidden, kernel):
        return module.linear_cross_entropy(hidden, kernel, labels) * 0.7

    want, got = (jax.value_and_grad(f, argnums=(0, 1))(hidden, kernel) for f in (plain, ours))
    for have, expected in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(have, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(ours(hidden, kernel), want[0], rtol=1e-6)


def test_no_label_counts():
    hidden, kernel, labels = arrays()
    nll, gradients = jax.value_and_grad(module.linear_cross_entropy, argnums=(0, 1))(
        hidden, kernel, jnp.full_like(labels, IGNORE)
    )
    assert nll == 0
    assert not any(jnp.any(g) for g in gradients)


def test_large_logits_do_not_overflow():
    hidden, kernel, labels = arrays()
    nll, gradients = jax.value_and_grad(module.linear_cross_entropy, argnums=(0, 1))(hidden * 1e3, kernel * 1e3, labels)
    assert np.isfinite(nll)
    assert all(jnp.isfinite(g).all() for g in gradients)


def test_half_precision_sums_in_float32():
    hidden, kernel, labels = arrays(jnp.bfloat16)
    kernel = kernel.astype(jnp.bfloat16).astype(jnp.float32)
    want = cross_entropy(jnp.einsum("bld,vd->blv", hidden.astype(jnp.float32), kernel), labels)[0]
    nll, (d_hidden, d_kernel) = jax.value_and_grad(module.linear_cross_entropy, argnums=(0, 1))(hidden, kernel, labels)
    assert (d_hidden.dtype, d_kernel.dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_allclose(nll, want, rtol=1e-6)


def test_the_logits_of_all_tokens_never_exist(monkeypatch):
    monkeypatch.setitem(module.CHUNK_LOGITS, "cpu", 2 * B * V)
    hidden, kernel, labels = arrays()
    step = jax.jit(jax.grad(module.linear_cross_entropy, argnums=(0, 1)))
    text = step.lower(hidden, kernel, labels).as_text()
    assert f"{2 * B}x{V}xf32" in text
    assert f"{B * L}x{V}xf32" not in text
    assert f"{B}x{L}x{V}xf32" not in text


@pytest.mark.parametrize("chunk", [1, V, 4 * B * V, 1 << 20])
def test_scores_of_labels(chunk, monkeypatch):
    monkeypatch.setitem(module.CHUNK_LOGITS, "cpu", chunk)
    hidden, kernel, labels = arrays()
    labels = labels.at[:, :2].set(IGNORE)  # with one token at a time, chunks that are not computed
    logits = np.einsum("bld,vd->blv", np.asarray(hidden), np.asarray(kernel))
    labels = labels.at[1, 5].set(int(logits[1, 5].argmax()))
    values, greedy = jax.jit(module.label_scores)(hidden, kernel, labels)
    real = np.asarray(labels) != IGNORE
    want = np.take_along_axis(logits, np.where(real, labels, 0)[..., None], -1)[..., 0] - np.log(np.exp(logits).sum(-1))
    np.testing.assert_allclose(values, np.where(real, want, 0), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(greedy, np.where(real, logits.argmax(-1) == labels, True))
    assert greedy[1, 5]
    assert not greedy.all()
