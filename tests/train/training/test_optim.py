"""The optimizer against plain formulas."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from tiny import by_name

import mom_jax as mom
from mom_jax.fields import ConfigError
from train.config import OptimConfig
from train.steps.optimizer import factor, is_decayed, make_optimizer, make_schedule
from train.steps.optimizer.names import path_name

MODEL = mom.ModelConfig(
    vocab_size=7,
    context_length=5,
    d_model=4,
    num_heads=2,
    anchor_after_chunk=True,
    num_attn_modules=2,
    num_ffn_modules=2,
    num_steps=2,
    num_classes=2,
    router=mom.RouterConfig(dim=3),
)
PARAMS = mom.parameters(mom.MoM(MODEL, rngs=nnx.Rngs(0)))
CONSTANT = {"schedule": "constant", "learning_rate": 0.1}


@pytest.fixture(autouse=True)
def _optax_mixes_types():
    with jax.numpy_dtype_promotion("standard"):
        yield


def gradients(scale=1e-3, seed=1):
    """Never zero, and so small that their norm is below 1."""
    rng = np.random.default_rng(seed)
    sign = jax.tree.map(lambda a: rng.choice([-1.0, 1.0], a.shape), PARAMS)
    return jax.tree.map(lambda s: jnp.asarray(scale * s * rng.uniform(1, 2, s.shape), jnp.float32), sign)


def step(optim, grads=None, params=PARAMS):
    """({name: change}, the optimizer's state) of the first step."""
    optimizer = make_optimizer(optim, 100)
    updates, state = jax.jit(optimizer.update)(grads or gradients(), optimizer.init(params), params)
    return by_name(updates), state


# Names.


def test_names_of_parameters():
    names = by_name(PARAMS)
    assert {"embed/tokens", "bottom/0/ffn/in_kernel", "chunks/0/attention/qkv_bias"} <= names.keys()
    assert {"chunks/0/ffn_router/score_kernel", "anchors/0/attention/norm_scale", "head/kernel"} <= names.keys()
    # Optimizer states hold parameters in structures with other kinds of keys.
    assert path_name((jax.tree_util.SequenceKey(1), jax.tree_util.GetAttrKey("mu"))) == "1/mu"


def test_matrices_decay_and_biases_and_norms_do_not():
    decayed = {name: is_decayed(name) for name in by_name(PARAMS)}
    words = {name.split("/")[-1] for name, yes in decayed.items() if yes}
    assert words == {
        *("tokens", "positions", "kernel", "qkv_kernel", "in_kernel", "out_kernel"),
        *("input_kernel", "state_kernel", "score_kernel"),
    }
    # In a pool these have two axes or three, which must not make matrices of them.
    for name in ("chunks/0/attention/qkv_bias", "chunks/0/ffn/norm_scale", "chunks/0/ffn/norm_bias"):
        assert by_name(PARAMS)[name].ndim >= 2
        assert not decayed[name]


# Factors.


@pytest.mark.parametrize(
    ("fields", "name", "expected"),
    [
        ({}, "embed/tokens", 1.0),
        ({"router_multiplier": 3.0}, "chunks/1/attention_router/score_bias", 3.0),
        ({"router_multiplier": 3.0}, "chunks/1/attention/qkv_kernel", 1.0),
        ({"multipliers": (("chunks/*", 0.5), ("chunks/0/*", 2.0))}, "chunks/0/ffn/in_bias", 0.5),
        ({"multipliers": (("chunks/0/*", 2.0), ("chunks/*", 0.5))}, "chunks/0/ffn/in_bias", 2.0),
        ({"multipliers": (("chunks/0/*", 2.0), ("chunks/*", 0.5))}, "chunks/1/ffn/in_bias", 0.5),
        ({"multipliers": (("*_router/*", 0.5),), "router_multiplier": 3.0}, "chunks/0/ffn_router/score_bias", 0.5),
        ({"multipliers": (("*", 2.0),), "freeze": ("embed/*",)}, "embed/tokens", 0.0),
        ({"freeze": ("chunks/*/attention/*",)}, "chunks/0/attention_router/score_bias", 1.0),
        ({"freeze": ("chunks/*/attention/*",)}, "bottom/0/attention/qkv_bias", 1.0),
        ({"freeze": ("chunks/*/attention/*",)}, "chunks/12/attention/qkv_bias", 0.0),
    ],
)
def test_factor(fields, name, expected):
    assert factor(name, OptimConfig(**fields)) == expected


# One step.


def test_first_step_by_hand():
    """Adam's first step, its moments corrected, is g / (|g| + eps); decay is added to it, then the rate multiplies."""
    optim = OptimConfig(**CONSTANT, weight_decay=0.25, epsilon=1e-4)
    changes, _ = step(optim)
    params, grads = by_name(PARAMS), by_name(gradients())
    for name, change in changes.items():
        adam = grads[name] / (np.abs(grads[name]) + 1e-4)
        decay = 0.25 * params[name] if is_decayed(name) else 0.0
        np.testing.assert_allclose(change, -0.1 * (adam + decay), rtol=1e-4, atol=1e-7, err_msg=name)


def test_second_step_by_hand():
    """The moments' averages and the decay of the learning rate, on one number."""
    optim = OptimConfig(learning_rate=0.1, schedule="cosine", beta1=0.8, beta2=0.9, epsilon=1e-3, weight_decay=0.5)
    optimizer, params = make_optimizer(optim, 10), {"kernel": jnp.array([2.0])}
    state = optimizer.init(params)
    updates, state = optimizer.update({"kernel": jnp.array([0.3])}, state, params)
    params = optax.apply_updates(params, updates)
    w = 2 - 0.1 * (0.3 / (0.3 + 1e-3) + 0.5 * 2)
    np.testing.assert_allclose(params["kernel"], [w], rtol=1e-6)
    updates, state = optimizer.update({"kernel": jnp.array([-0.1])}, state, params)
    m = (0.8 * 0.2 * 0.3 + 0.2 * -0.1) / (1 - 0.8**2)
    v = (0.9 * 0.1 * 0.3**2 + 0.1 * 0.1**2) / (1 - 0.9**2)
    rate = 0.1 * (1 + math.cos(math.pi / 10)) / 2
    np.testing.assert_allclose(updates["kernel"], [-rate * (m / (math.sqrt(v) + 1e-3) + 0.5 * w)], rtol=1e-5)


def test_multipliers_scale_the_whole_update():
    plain, _ = step(OptimConfig(**CONSTANT))
    scaled, _ = step(OptimConfig(**CONSTANT, router_multiplier=3.0, multipliers=(("embed/*", 0.5),)))
    for name, change in scaled.items():
        times = 3.0 if "_router/" in name else 0.5 if name.startswith("embed/") else 1.0
        np.testing.assert_allclose(change, times * plain[name], rtol=1e-6, err_msg=name)


def test_a_large_gradient_is_clipped_and_a_small_one_is_not():
    """epsilon is large, so that Adam's step is nearly linear in the gradient and shows its size."""
    optim = {**CONSTANT, "epsilon": 1e3, "weight_decay": 0.0}
    grads = gradients()
    norm = math.sqrt(sum(float(jnp.square(g).sum()) for g in jax.tree.leaves(grads)))
    free, _ = step(OptimConfig(**optim, clip_norm=2 * norm), grads)
    clipped, _ = step(OptimConfig(**optim, clip_norm=norm / 4), grads)
    for name in free:
        np.testing.assert_allclose(free[name], -0.1 * by_name(grads)[name] / 1e3, rtol=1e-3)
        np.testing.assert_allclose(clipped[name], free[name] / 4, rtol=1e-3)


# Freezing.

FROZEN = ("chunks/*/attention/*", "embed/*")


def is_frozen(name):
    return name.startswith(("chunks/0/attention/", "embed/"))


def test_frozen_parameters_do_not_change_and_have_no_moments():
    changes, state = step(OptimConfig(**CONSTANT, freeze=FROZEN))
    for name, change in changes.items():
        assert (np.abs(change).max() == 0) == is_frozen(name), name
    trained = sum(a.size for name, a in by_name(PARAMS).items() if not is_frozen(name))
    assert sum(leaf.size for leaf in jax.tree.leaves(state) if leaf.ndim) == 2 * trained
    _, everything = step(OptimConfig(**CONSTANT))
    assert sum(leaf.size for leaf in jax.tree.leaves(everything) if leaf.ndim) == 2 * sum(
        a.size for a in jax.tree.leaves(PARAMS)
    )


def test_frozen_parameters_are_not_in_the_clipped_norm():
    huge = jax.tree_util.tree_map_with_path(lambda path, g: 1e6 * g if is_frozen(path_name(path)) else g, gradients())
    optim = {**CONSTANT, "epsilon": 1e3}
    usual, _ = step(OptimConfig(**optim, freeze=FROZEN))
    same, _ = step(OptimConfig(**optim, freeze=FROZEN), huge)
    chex.assert_trees_all_close(same, usual, rtol=1e-6)
    # Not frozen, they leave nothing of the others.
    swamped, _ = step(OptimConfig(**optim, weight_decay=0.0), huge)
    assert np.abs(swamped["head/kernel"]).max() < 1e-3 * np.abs(usual["head/kernel"]).max()


# Schedules.


def rates(steps, **fields):
    schedule = make_schedule(OptimConfig(learning_rate=0.8, **fields), steps)
    return np.array([schedule(jnp.asarray(i)) for i in range(steps + 1)], np.float64)


def test_cosine():
    got = rates(12, warmup_steps=4, final_fraction=0.25)
    np.testing.assert_allclose(got[:5], [0.2, 0.4, 0.6, 0.8, 0.8], rtol=1e-6)
    for i in range(4, 13):
        cosine = (1 + math.cos(math.pi * (i - 4) / 8)) / 2
        np.testing.assert_allclose(got[i], 0.8 * (0.25 + 0.75 * cosine), rtol=1e-5)
    np.testing.assert_allclose((got[8], got[12]), (0.8 * 0.625, 0.2), rtol=1e-6)
    np.testing.assert_allclose(rates(12)[[0, 6, 12]], [0.8, 0.4, 0.0], atol=1e-7)


def test_warmup_of_one_step_and_of_all():
    np.testing.assert_allclose(rates(4, warmup_steps=1)[:2], [0.8, 0.8], rtol=1e-6)
    np.testing.assert_allclose(rates(4, warmup_steps=4)[:4], [0.2, 0.4, 0.6, 0.8], rtol=1e-6)


def test_constant():
    got = rates(6, schedule="constant", warmup_steps=2)
    np.testing.assert_allclose(got, [0.4] + [0.8] * 6, rtol=1e-6)


def test_warmup_stable_decay():
    got = rates(10, schedule="wsd", warmup_steps=2, decay_steps=4, final_fraction=0.5)
    np.testing.assert_allclose(got, [0.4, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8, 0.7, 0.6, 0.5, 0.4], rtol=1e-5)
    got = rates(6, schedule="wsd", decay_steps=2)
    np.testing.assert_allclose(got, [0.8, 0.8, 0.8, 0.8, 0.8, 0.4, 0.0], rtol=1e-5, atol=1e-7)
    # No stable part.
    got = rates(4, schedule="wsd", warmup_steps=2, decay_steps=2)
    np.testing.assert_allclose(got, [0.4, 0.8, 0.8, 0.4, 0.0], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("fields", [{"schedule": "wsd"}, {"schedule": "cosine", "decay_steps": 2}])
def test_decay_steps_are_for_wsd_alone(fields):
    with pytest.raises(ConfigError, match="decay_steps"):
        OptimConfig(**fields)
