"""Dropout, half precision, the size of the program, and calls that cannot be."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from small import NEVER, SMALL, assert_close, change, explicit, quick, random_ids, random_params, run, total_loss

import mom_jax as mom
from mom_jax.config import ChoiceConfig, DropoutConfig

ROUTED = change(SMALL, anchor_after_chunk=True, num_steps=2)


def constant_sublayers(config):
    """Parameters with which every sublayer's output is 1 before dropout, and the embedding 0."""

    def fill(path, leaf):
        return jnp.full(leaf.shape, 1.0 if path[-1].key == "out_bias" else 0.0)

    shapes = mom.parameters(nnx.eval_shape(lambda: mom.MoM(config, rngs=nnx.Rngs(0))))
    return jax.tree_util.tree_map_with_path(fill, shapes)


def masks_of_steps(config, key):
    """What each step adds, [H, B, L, D], where every sublayer's output is 1 before dropout."""
    params = constant_sublayers(config)
    hidden = run(config, params, random_ids(), key=key, capture=("hidden",)).captured["chunks/0"]
    return np.diff(np.asarray(hidden), axis=0, prepend=0)


SHARED = change(SMALL, num_attn_modules=1, num_ffn_modules=1, dropout={"residual": 0.5})


def test_dropout_differs_by_step():
    masks = masks_of_steps(SHARED, jax.random.key(0))
    assert set(np.unique(masks)) == {0, 2, 4}  # none, one or both sublayers, scaled up by 2
    for h in range(3):
        assert abs(masks[h].mean() - 2) < 0.25
        assert not np.array_equal(masks[h], masks[(h + 1) % 3])
    np.testing.assert_array_equal(masks_of_steps(SHARED, jax.random.key(0)), masks)
    assert not np.array_equal(masks_of_steps(SHARED, jax.random.key(1)), masks)


def test_dropout_of_routed_sublayers():
    """Routed attention drops outputs as every attention does; a routed FFN drops none."""
    one = explicit(*[(0.0, NEVER, NEVER, NEVER)] * 3)
    routed = change(SMALL, attention=one, ffn=one, dropout={"residual": 0.5}, top_k=1)
    masks = masks_of_steps(routed, jax.random.key(0))
    assert set(np.unique(masks)) == {1, 3}


def test_there_is_no_dropout_without_a_key():
    wet = change(SMALL, dropout={"embedding": 0.5, "attention": 0.5, "residual": 0.5}, num_steps=1)
    dry = change(wet, dropout=DropoutConfig())
    params, ids = random_params(wet), random_ids()
    np.testing.assert_array_equal(run(wet, params, ids).hidden, run(dry, params, ids).hidden)


@pytest.mark.parametrize("rate", ["embedding", "attention", "residual"])
def test_every_dropout_rate_has_an_effect(rate):
    config = change(SMALL, num_chunks=0, num_bottom=1, dropout={rate: 0.5})
    params, ids = random_params(config), random_ids()
    a, again, b = (run(config, params, ids, key=jax.random.key(n)).hidden for n in (0, 0, 1))
    np.testing.assert_array_equal(a, again)
    assert np.abs(a - b).max() > 0.1
    assert np.abs(a - run(config, params, ids).hidden).max() > 0.1


# The program.


def test_the_program_does_not_grow_with_the_steps():
    def size(steps):
        config = change(SMALL, num_steps=steps)
        params = random_params(config)
        return len(jax.jit(jax.grad(lambda p, ids: total_loss(config, p, ids))).lower(params, random_ids()).as_text())

    assert abs(size(32) / size(4) - 1) < 0.01


def test_annealing_does_not_compile_again():
    config = change(SMALL, attention=ChoiceConfig(preference=30.0, anneal_steps=10), num_steps=1)
    params, ids = random_params(config), random_ids()

    @jax.jit
    @chex.assert_max_traces(1)
    def hidden(step):
        return run(config, params, ids, step=step).hidden

    at = [hidden(jnp.asarray(step)) for step in (0, 10, 20)]
    assert np.abs(at[0] - at[1]).max() > 1e-3
    np.testing.assert_array_equal(at[1], at[2])


@pytest.mark.slow
@pytest.mark.parametrize("all_modules", [False, True])
def test_half_precision(all_modules):
    config = change(SMALL, dtype="bfloat16", router={"all_modules": all_modules, "temperature": 2.0}, num_steps=2)
    params, ids = random_params(config), random_ids()

    def forward(config):
        output = run(config, params, ids, capture=("hidden", "routing"))
        return output.hidden, output.logits, output.captured, output.routing

    hidden, logits, captured, routing = quick(lambda: forward(config))()
    assert hidden.dtype == captured["chunks/0"].dtype == jnp.bfloat16
    assert logits.dtype == jnp.float32
    for name, array in captured.items():
        if name.endswith(("scores", "weight", "state")):
            assert array.dtype == jnp.float32, name
    assert {leaf.dtype for leaf in jax.tree.leaves(routing)} == {jnp.dtype("float32")}
    chex.assert_tree_all_finite((hidden, logits))
    # Scores are float32 not by type only: nothing was rounded on the way from the router's state.
    router = params["chunks"][0]["ffn_router"]
    want = captured["ffn/state"] @ router["score_kernel"] + router["score_bias"][None, None, None, None]
    assert_close(captured["ffn/scores"], jax.nn.softmax(want / config.router.temperature, -1), atol=1e-6)
    gradient = quick(jax.grad(functools.partial(total_loss, config, ids=ids)))(params)
    chex.assert_tree_all_finite(gradient)
    assert {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {jnp.dtype("float32")}
    if all_modules:  # otherwise rounding may decide a choice
        exact = np.asarray(quick(lambda: forward(change(config, dtype="float32")))()[1])
        error = np.linalg.norm(logits - exact) / np.linalg.norm(exact)
        assert 1e-4 < error < 0.03


# Calls that cannot be.


def test_calls_that_cannot_be():
    model = mom.MoM(change(SMALL, num_chunks=0), rngs=nnx.Rngs(0))
    ids = random_ids()
    with pytest.raises(ValueError, match="ids have 10 tokens, more than context_length=9"):
        model(random_ids(1, 10))
    with pytest.raises(ValueError, match=r"capture=\['logits'\]: known are"):
        model(ids, capture=("logits",))
    with pytest.raises(ValueError, match="segment_ids cannot be used with a cache"):
        model(ids, segment_ids=jnp.zeros_like(ids), cache=model.init_cache(2, 9))
    with pytest.raises(ValueError, match="num_classes=None"):
        model.classify(jnp.zeros((2, 7, 16)), jnp.array([0, 1]))
    noisy = mom.MoM(change(SMALL, router={"kind": "gru_random", "noise_in_evaluation": True}), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="pass noise= or key="):
        noisy(ids)
