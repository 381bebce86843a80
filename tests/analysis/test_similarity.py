"""Similarity of modules: equal to plain NumPy, 1 for the same module twice, near 0 for independent ones."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import ORDERED, SMALL, change, random_params

from mom_jax.analysis.similarity import cka, cosine, linear_cka, similarity

CONFIG = change(SMALL, num_bottom=0, context_length=24)
RNG = np.random.default_rng(0)


def centred(x):
    return x - x.mean(0)


def hsic_u(x, y):
    """The unbiased estimator of HSIC with linear kernels, by its definition: a mean over ordered quadruples."""
    k, l = x @ x.T, y @ y.T
    terms = [k[i, j] * (l[i, j] + l[q, r] - 2 * l[i, q]) for i, j, q, r in itertools.permutations(range(len(x)), 4)]
    return np.mean(terms)


def test_linear_cka_equals_its_definitions():
    x, y = RNG.normal(size=(7, 3)), RNG.normal(size=(7, 5))
    y[:, 0] += 2 * x[:, 1]
    a, b = centred(x), centred(y)
    plain = np.sum((b.T @ a) ** 2) / np.linalg.norm(a.T @ a) / np.linalg.norm(b.T @ b)
    assert linear_cka(x, y, debiased=False) == pytest.approx(plain, rel=1e-12)
    debiased = hsic_u(x, y) / np.sqrt(hsic_u(x, x) * hsic_u(y, y))
    assert linear_cka(x, y) == pytest.approx(debiased, rel=1e-10)


def test_cka_is_1_for_the_same_up_to_rotation_and_near_0_for_independent_representations():
    x = RNG.normal(size=(300, 64))
    rotation = np.linalg.qr(RNG.normal(size=(64, 64)))[0]
    independent = RNG.normal(size=(300, 64))
    table = cka(np.stack([x, 3 * x @ rotation + 1, independent]))
    np.testing.assert_allclose(table[0, :2], 1.0, atol=1e-12)
    assert abs(table[0, 2]) < 0.02
    # What the debiased estimator is for.
    assert linear_cka(x, independent, debiased=False) > 0.15
    assert np.isnan(cka(RNG.normal(size=(2, 3, 4)))[0, 1])


def test_cosine_of_products():
    vectors = RNG.normal(size=(3, 5))
    vectors[2] = 0
    unit = vectors[:2] / np.linalg.norm(vectors[:2], axis=1, keepdims=True)
    table = cosine(vectors @ vectors.T)
    np.testing.assert_allclose(table[:2, :2], unit @ unit.T, rtol=1e-12)
    np.testing.assert_array_equal(table[2], [0, 0, 1])


def numpy_module(params, side, i, x, visible, config):
    """(weights as one vector, outputs [L, D], patterns [h, L, L] or None) of a module on one sequence x [L, D]."""
    p = {name: np.asarray(value[i], np.float64) for name, value in params["chunks"][0][side].items()}
    first = "qkv" if side == "attention" else "in"
    kernel = p[f"{first}_kernel"].reshape(x.shape[1], -1)
    bias = p[f"{first}_bias"].reshape(-1) + p["norm_bias"] @ kernel
    kernel = p["norm_scale"][:, None] * kernel
    weights = np.concatenate([kernel.ravel(), bias, p["out_kernel"].ravel(), p["out_bias"]])
    normed = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + config.layer_norm_epsilon)
    hidden = normed @ kernel + bias
    if side == "ffn":
        hidden = np.asarray(jax.nn.gelu(jnp.asarray(hidden, jnp.float32), approximate=True), np.float64)
        return weights, hidden @ p["out_kernel"] + p["out_bias"], None
    heads = config.num_heads
    q, k, v = (t.reshape(len(x), heads, -1).swapaxes(0, 1) for t in np.split(hidden, 3, 1))
    logits = np.where(visible, q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1]), -np.inf)
    probability = np.exp(logits - logits.max(-1, keepdims=True))
    probability /= probability.sum(-1, keepdims=True)
    outputs = (probability @ v).swapaxes(0, 1).reshape(len(x), -1) @ p["out_kernel"] + p["out_bias"]
    return weights, outputs, probability - visible / visible.sum(-1, keepdims=True)


@pytest.fixture(scope="module")
def params():
    """The second module is the first one with its heads in another order; the third is independent."""
    params = random_params(CONFIG)
    for side in ("attention", "ffn"):
        own = params["chunks"][0][side]
        for name, value in own.items():
            own[name] = value.at[1].set(value[0])
    own = params["chunks"][0]["attention"]
    heads = np.arange(16).reshape(2, 8)[::-1].ravel()
    for name, axis in (("qkv_kernel", 2), ("qkv_bias", 1), ("out_kernel", 0)):
        own[name] = own[name].at[1].set(jnp.take(own[name][1], heads, axis))
    return params


def test_similarity_of_modules_equals_plain_numpy(params):
    x = RNG.normal(size=(2, 24, 16)).astype(np.float32)
    mask = np.ones((2, 24), bool)
    mask[1, 20:] = False
    found = similarity(params, CONFIG, x, {"mask": mask})
    visible = np.tril(np.ones((24, 24), bool))
    for side, got in found.items():
        # The padding at the end is seen by nothing before it.
        parts = [[numpy_module(params, side, i, x[b], visible, CONFIG) for b in range(2)] for i in range(3)]
        weights = np.stack([first[0] for first, _ in parts])
        unit = weights / np.linalg.norm(weights, axis=1, keepdims=True)
        np.testing.assert_allclose(got.weights, unit @ unit.T, atol=1e-5)
        outputs = np.stack([np.concatenate([first[1], second[1][:20]]) for first, second in parts])
        np.testing.assert_allclose(got.outputs, cka(outputs), atol=1e-4)
        assert got.outputs[0, 1] == pytest.approx(1.0, abs=1e-4)
        assert got.outputs[0, 2] < 0.7
        assert abs(got.weights[0, 2]) < 0.1
        assert got.mean(got.weights) == pytest.approx(got.weights[[0, 0, 1], [1, 2, 2]].mean())
        if side == "ffn":
            assert got.weights[0, 1] == pytest.approx(1.0, abs=1e-6)
            assert got.patterns is None
            continue
        patterns = np.stack(
            [np.concatenate([first[2], second[2][:, :20]], 1).reshape(2, -1) for first, second in parts]
        )
        unit = patterns / np.linalg.norm(patterns, axis=2, keepdims=True)
        alike = np.ones((3, 3))
        for i, j in itertools.permutations(range(3), 2):
            pairs = unit[i] @ unit[j].T
            alike[i, j] = (pairs.max(0).mean() + pairs.max(1).mean()) / 2
        np.testing.assert_allclose(got.patterns, alike, atol=1e-4)
        assert got.patterns[0, 1] == pytest.approx(1.0, abs=1e-5)
        assert got.patterns[0, 2] < 0.7


def test_a_pool_of_one_module_has_no_mean(params):
    config = change(SMALL, num_attn_modules=1, ffn=ORDERED, num_chunks=2)
    found = similarity(random_params(config), config, RNG.normal(size=(2, 9, 16)).astype(np.float32), {})
    assert found["attention"].weights.shape == (2, 2)
    assert found["attention"].mean(found["attention"].weights) is None
    assert found["ffn"].weights.shape == (6, 6)
    table = found["ffn"].weights
    within = [table[i, j] for i, j in itertools.permutations(range(6), 2) if i // 3 == j // 3]
    assert found["ffn"].mean(table) == pytest.approx(np.mean(within))
    assert similarity({}, change(SMALL, num_chunks=0), np.zeros((2, 9, 16), np.float32), {}) == {}
