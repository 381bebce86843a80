"""Attention's backends against a loop over queries, values and gradients."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mom_jax import attention
from mom_jax.attention import KV, View, attend
from mom_jax.config import DropoutConfig, ModelConfig
from mom_jax.fields import ConfigError
from mom_jax.platforms import building_for

CONFIG = ModelConfig(d_model=12, num_heads=3)
# splash takes multiples of 128 only; it is interpreted here, which is slow.
CASES = pytest.mark.parametrize(
    ("backend", "length"),
    [
        ("plain", 9),
        ("plain", 130),
        ("blocked", 9),
        ("blocked", 64),
        ("blocked", 130),
        ("blocked", 600),
        ("splash", 128),
    ],
)


def view_of(valid, segments=None):
    length = valid.shape[1]
    visible = np.tril(np.ones((length, length), bool))[None] & valid[:, None]
    if segments is not None:
        visible &= segments[:, :, None] == segments[:, None, :]
    ids = None if segments is None and valid.all() else np.where(valid, 0 if segments is None else segments, -1)
    return View(jnp.asarray(visible), segment_ids=None if ids is None else jnp.asarray(ids, jnp.int32))


def views(length):
    rng = np.random.default_rng(0)
    full = np.ones((2, length), bool)
    right = np.arange(length)[None] < np.array([[length], [length // 2]])
    segments = np.sort(rng.integers(0, 3, (2, length)), -1)
    return {"causal": (full, None), "padded": (right, None), "segments": (full, segments), "both": (right, segments)}


def plain(qkv, visible):
    """A loop over sequences, heads and queries, in float64."""
    batch, length, width = qkv.shape
    q, k, v = np.split(np.asarray(qkv, np.float64).reshape(batch, length, 3, 3, 4), 3, 2)
    out = np.zeros((batch, length, 3, 4))
    for b in range(batch):
        for head in range(3):
            for t in range(length):
                seen = np.flatnonzero(np.asarray(visible)[b if len(visible) > 1 else 0, t])
                if len(seen):
                    logits = k[b, seen, 0, head] @ q[b, t, 0, head] / 2
                    p = np.exp(logits - logits.max())
                    out[b, t, head] = (p / p.sum()) @ v[b, seen, 0, head]
    return out.reshape(batch, length, width // 3)


@functools.partial(jax.jit, static_argnames="config")
def with_gradient(qkv, view, d, *, config):
    y, backward = jax.vjp(lambda qkv: attend(qkv, view, config, key=None, cache=None)[0], qkv)
    return y, backward(d)[0]


@CASES
@pytest.mark.parametrize("name", ["causal", "padded", "segments", "both"])
def test_values_and_gradients(backend, length, name):
    valid, segments = views(length)[name]
    view = view_of(valid, segments)
    rng = np.random.default_rng(1)
    qkv = jnp.asarray(rng.normal(size=(2, length, 36)), jnp.float32)
    # What padding gets is nobody's business.
    d = jnp.asarray(rng.normal(size=(2, length, 12)) * valid[..., None], jnp.float32)
    (y, gradient), (_, oracle) = (
        with_gradient(qkv, view, d, config=dataclasses.replace(CONFIG, attention_kernel=kernel))
        for kernel in (backend, "plain")
    )
    np.testing.assert_allclose(np.where(valid[..., None], y, 0), plain(qkv, view.visible) * valid[..., None], atol=2e-6)
    np.testing.assert_allclose(gradient, oracle, atol=1e-5)


def test_gradients_of_the_oracle_by_differences():
    view = view_of(np.ones((1, 5), bool))
    qkv = jnp.asarray(np.random.default_rng(0).normal(size=(1, 5, 36)), jnp.float32)

    @jax.jit
    def run(qkv):
        config = dataclasses.replace(CONFIG, attention_kernel="plain")
        return attend(jnp.asarray(qkv), view, config, key=None, cache=None)[0]

    jax.test_util.check_grads(run, (qkv,), 1, ("rev",), atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("backend", ["plain", "blocked"])
def test_a_token_that_sees_nothing_gets_zeros_and_gives_no_nan(backend):
    view = View(jnp.asarray(np.tril(np.ones((4, 4), bool), -1)[None]))
    config = dataclasses.replace(CONFIG, attention_kernel=backend)
    qkv = jnp.asarray(np.random.default_rng(0).normal(size=(1, 4, 36)), jnp.float32)
    y, gradient = with_gradient(qkv, view, jnp.ones((1, 4, 12)), config=config)
    assert (y[:, 0] == 0).all()
    assert (jnp.abs(y[:, 1:]) > 0).all()
    chex.assert_tree_all_finite(gradient)


@pytest.mark.parametrize("backend", ["plain", "blocked"])
def test_half_precision(backend):
    view = view_of(np.ones((1, 70), bool))
    config = dataclasses.replace(CONFIG, attention_kernel=backend)
    qkv = jnp.asarray(np.random.default_rng(0).normal(size=(1, 70, 36)), jnp.bfloat16)
    d = jnp.ones((1, 70, 12), jnp.bfloat16)
    y, gradient = with_gradient(qkv, view, d, config=config)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(y.astype(jnp.float32), plain(qkv.astype(jnp.float32), view.visible), atol=0.03)
    _, wide = with_gradient(qkv.astype(jnp.float32), view, d.astype(jnp.float32), config=config)
    np.testing.assert_allclose(gradient.astype(jnp.float32), wide, atol=0.03 * float(jnp.abs(wide).max()))


@pytest.mark.parametrize("name", ["causal", "padded", "segments", "both"])
@pytest.mark.parametrize(
    ("length", "width", "dtype"), [(33, 16, "float32"), (128, 24, "float32"), (130, 64, "bfloat16")]
)
def test_the_kernel_for_gpus_is_plain_attention(name, length, width, dtype):
    """Interpreted: lengths that are no multiple of its blocks, heads whose width is no power of two."""
    valid, segments = views(length)[name]
    view = view_of(valid, segments)
    rng = np.random.default_rng(1)
    qkv = jnp.asarray(rng.normal(size=(2, length, 6 * width)), dtype)
    d = jnp.asarray(rng.normal(size=(2, length, 2 * width)) * valid[..., None], dtype)

    def run(backend):
        config = ModelConfig(d_model=2 * width, num_heads=2, dtype=dtype, attention_kernel=backend)
        y, gradient = with_gradient(qkv, view, d, config=config)
        return jnp.where(valid[..., None], y, 0), gradient

    allowed = 1e-5 if dtype == "float32" else 0.03
    for got, want in zip(run("triton"), run("plain"), strict=True):
        got, want = (x.astype(jnp.float32) for x in (got, want))
        np.testing.assert_allclose(got, want, atol=allowed * float(jnp.abs(want).max()))


@pytest.mark.parametrize(
    ("where", "fields", "length", "packed", "want"),
    [
        (("cpu", None), {}, 256, False, "blocked"),
        (("tpu", None), {}, 256, False, "splash"),
        (("tpu", None), {}, 200, False, "blocked"),
        (("gpu", (9, 0)), {}, 200, False, "cudnn"),
        (("gpu", (8, 0)), {}, 201, False, "cudnn"),
        (("gpu", (9, 0)), {}, 200, True, "triton"),
        (("gpu", (9, 0)), {"dtype": "float32"}, 200, False, "triton"),
        (("gpu", (9, 0)), {"num_heads": 3}, 200, False, "triton"),
        (("gpu", (9, 0)), {"num_heads": 2}, 200, False, "blocked"),
        (("gpu", (7, 5)), {}, 200, False, "blocked"),
        (("gpu", None), {"dtype": "float32"}, 200, True, "blocked"),
        (("gpu", (9, 0)), {"attention_kernel": "plain"}, 200, False, "plain"),
    ],
)
def test_auto_goes_by_platform_and_shape(where, fields, length, packed, want):
    config = ModelConfig(**({"dtype": "bfloat16"} | fields))
    with building_for(*where):
        assert attention.resolve(config, length, packed=packed) == want


@pytest.mark.parametrize(
    ("where", "fields", "said"),
    [
        (("cpu", None), {"attention_kernel": "cudnn"}, "attention_kernel='cudnn': needs an NVIDIA GPU"),
        (
            ("gpu", (9, 0)),
            {"attention_kernel": "cudnn", "dtype": "float32"},
            "'cudnn': takes bfloat16 .* not float32 and 64",
        ),
        (("gpu", (9, 0)), {"attention_kernel": "cudnn", "num_heads": 3}, "'cudnn': .* not bfloat16 and 256"),
        (("gpu", (7, 0)), {"attention_kernel": "triton"}, "attention_kernel='triton': needs an NVIDIA GPU"),
        (
            ("gpu", (9, 0)),
            {"attention_kernel": "triton", "num_heads": 2},
            "'triton': takes heads of 16 to 256 numbers, not 384",
        ),
    ],
)
def test_what_a_gpu_cannot_do_is_said(where, fields, said):
    with building_for(*where), pytest.raises(ConfigError, match=said):
        attention.resolve(ModelConfig(**({"dtype": "bfloat16"} | fields)), 200)


def test_what_splash_cannot_do_is_said():
    config = ModelConfig(attention_kernel="splash")
    assert attention.resolve(config, 256) == "splash"
    with pytest.raises(
        ConfigError, match="attention_kernel='splash': takes sequences of a multiple of 128 tokens, not 200"
    ):
        attention.resolve(config, 200)


def test_dropout_and_caches_take_the_plain_way():
    """Whatever the backend: dropout of probabilities takes effect, and a cache's unused slots are not seen."""
    qkv = jnp.asarray(np.random.default_rng(0).normal(size=(1, 6, 36)), jnp.float32)
    view = view_of(np.ones((1, 6), bool))
    config = dataclasses.replace(CONFIG, attention_kernel="splash", dropout=DropoutConfig(attention=0.5))
    dropped = attend(qkv, view, config, key=jax.random.key(0), cache=None)[0]
    want = plain(qkv, view.visible)
    assert np.abs(dropped - want).max() > 0.1
    slots = jnp.zeros((1, CONFIG.num_heads, 8, CONFIG.head_dim), jnp.float32)
    visible = jnp.pad(view.visible, ((0, 0), (0, 0), (0, 2)))
    y, cache = attend(qkv, View(visible, jnp.int32(0)), config, key=None, cache=KV(slots, slots))
    np.testing.assert_allclose(y, want, atol=2e-6)
    keys = qkv[:, :, 12:24].reshape(1, 6, CONFIG.num_heads, CONFIG.head_dim)
    np.testing.assert_array_equal(cache.key[:, :, :6], keys.swapaxes(1, 2))
