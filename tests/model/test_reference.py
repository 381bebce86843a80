"""The oracle computes what the authors' code computed, for every golden."""

import dataclasses
import math

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from mom_jax.config import ChoiceConfig, ModelConfig, RouterConfig
from mom_jax.interop import official
from mom_jax.interop.official import params_from_official, params_to_official

# Where the oracle has nothing to say: what went in, and parameters and gradients, which are compared by name.
INPUTS = ("input_ids", "labels", "attention_mask", "noise/")


def run(g):
    """The oracle's quantities on a golden, under the golden's names."""
    params = jax.tree.map(jnp.asarray, params_from_official(g.state_dict, g.config))
    config = g.config
    if config.num_classes:  # their classifier's loss has no balance part
        config = dataclasses.replace(config, balance=dataclasses.replace(config.balance, weight=0.0))
    ids, labels = jnp.asarray(g.arrays["input_ids"], jnp.int32), jnp.asarray(g.arrays["labels"], jnp.int32)
    kwargs = {"mask": g.arrays.get("attention_mask"), "noise": g.noise, "last_index": g.last_index}

    def objective(params):
        return reference.losses_and_forward(params, ids, labels, config, **kwargs)

    (total, (parts, out)), grads = jax.jit(jax.value_and_grad(objective, has_aux=True))(params)
    grads = params_to_official(jax.tree.map(np.asarray, grads), config)
    return out | parts | {"total_loss": total} | {f"grad/{name}": a for name, a in grads.items()}


# One of each kind of router and scoring; the others are slow.
QUICK = ("02_gru_softmax", "22_ste_clamp")
FILES = [
    pytest.param(path, marks=() if path.stem.startswith(QUICK) else pytest.mark.slow, id=path.stem)
    for path in golden.golden_files()
]


@pytest.mark.parity
@pytest.mark.parametrize("path", FILES)
def test_golden(path):
    g = golden.load(path)
    ours = run(g)
    compared = set(g.arrays) - set(g.state_dict) - {name for name in g.arrays if name.startswith(INPUTS)}
    assert {"logits", "loss", "total_loss", "hidden_final"} <= compared
    assert {f"grad/{name}" for name in g.state_dict} - {"grad/lm_head.weight"} <= compared
    for name in sorted(compared):
        got, want = np.asarray(ours[name]), g.arrays[name]
        if "topk_ids" in name:
            np.testing.assert_array_equal(got, want, err_msg=name)
        else:
            np.testing.assert_allclose(got, want, rtol=0, atol=g.tolerance(name), err_msg=name)


# What no golden has: our own options, each against another way to say the same.

SMALL = ModelConfig(
    vocab_size=11,
    context_length=6,
    d_model=8,
    num_heads=2,
    num_bottom=0,
    num_top=0,
    num_attn_modules=2,
    num_ffn_modules=2,
    num_steps=2,
    top_k=2,
    router=RouterConfig(dim=4, temperature=1.0),
)
IDS = np.arange(12).reshape(2, 6) % 11


def random_params(config):
    rng = np.random.default_rng(0)
    state = {e.name: rng.normal(0, 0.5, e.shape).astype(np.float32) for e in official._entries(config)}
    return jax.tree.map(jnp.asarray, params_from_official(state, config))


def forward(config, params=None, **kwargs):
    oracle = jax.jit(lambda params: reference.forward(params, jnp.asarray(IDS), config, **kwargs))
    return oracle(params or random_params(config))


def assert_same(a, b):
    np.testing.assert_allclose(a["logits"], b["logits"], rtol=0, atol=1e-5)


def test_ordered_steps_are_the_layers_of_a_vanilla_model():
    ordered = SMALL.vanilla()
    params = random_params(ordered)
    layers = {h: jax.tree.map(lambda a, h=h: a[h], params["chunks"][0]) for h in range(2)}
    vanilla = dataclasses.replace(ordered, num_chunks=0, num_bottom=2)
    assert_same(forward(ordered, params), forward(vanilla, params | {"bottom": layers}))


def test_a_prior_that_leaves_one_class_is_the_ordered_model():
    table = tuple(tuple(0.0 if c == h else -math.inf for c in range(3)) for h in range(2))
    only = ChoiceConfig(prior=table)
    free = dataclasses.replace(SMALL, attention=only, ffn=only)
    params = random_params(free)
    # The forbidden second choice is null and has no weight, neither in the sum nor by itself.
    assert_same(forward(free, params), forward(SMALL.vanilla(), params))


def test_forbidden_classes_give_finite_gradients_and_no_output():
    skip = ChoiceConfig(prior=((-math.inf, -math.inf, 0.0),) * 2)
    for router in (SMALL.router, dataclasses.replace(SMALL.router, scoring="raw")):
        config = dataclasses.replace(SMALL, attention=skip, ffn=skip, router=router, z_loss=0.1)
        out = forward(config)
        np.testing.assert_array_equal(out["hidden_pre_lnf"], out["hidden/embed"])
        loss = jax.jit(jax.grad(lambda p, c=config: reference.losses(p, jnp.asarray(IDS), jnp.asarray(IDS), c)[0]))
        grads = loss(random_params(config))
        assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


def test_a_strong_preference_is_ordered_or_skip_and_anneals_away():
    strong = ChoiceConfig(preference=50.0, anneal_steps=10)
    probability = dataclasses.replace(SMALL.router, weights="probability")
    config = dataclasses.replace(SMALL, attention=strong, ffn=strong, top_k=1, router=probability)
    free = dataclasses.replace(config, attention=ChoiceConfig(), ffn=ChoiceConfig())
    assert_same(forward(config, step=0), forward(SMALL.vanilla(), random_params(config)))
    assert_same(forward(config, step=10), forward(free))
    assert_same(forward(config, step=4), forward(config.at_step(4)))
    assert np.abs(forward(config, step=0)["logits"] - forward(free)["logits"]).max() > 0.01
    # Beyond the last module SKIP is preferred.
    longer = dataclasses.replace(config, num_steps=3)
    out = forward(longer)
    np.testing.assert_allclose(out["hidden/h0/step2"], out["hidden/h0/step1"], atol=1e-5)


def test_ordered_or_skip_takes_its_module_or_nothing():
    choice = ChoiceConfig(choice="ordered_or_skip")
    out = forward(dataclasses.replace(SMALL, attention=choice, ffn=choice, top_k=1))
    for side in ("attn", "ffn"):
        for h in range(2):
            assert set(np.unique(out[f"{side}_topk_ids/{h}"])) <= {h, 2}


def test_probability_weights_train_the_router_at_k_1_and_renormalised_ones_do_not():
    for weights, trains in (("auto", True), ("renormalised", False)):
        router = dataclasses.replace(SMALL.router, weights=weights)
        config = dataclasses.replace(SMALL, top_k=1, router=router)
        loss = jax.jit(jax.grad(lambda p, c=config: reference.losses(p, IDS, jnp.asarray(IDS), c)[1]["loss"]))
        grads = loss(random_params(config))
        size = np.abs(grads["chunks"][0]["ffn_router"]["score_kernel"]).max()
        assert (size > 1e-4) == trains


def test_noise_is_its_mean_unless_the_configuration_needs_it():
    router = dataclasses.replace(SMALL.router, kind="gru_random")
    config = dataclasses.replace(SMALL, router=router)
    half = np.full((1, 2, 2, 6, 4), 0.5, np.float32)
    assert_same(forward(config), forward(config, noise={"attention": half, "ffn": half}))
    with pytest.raises(AssertionError, match="noise"):
        forward(dataclasses.replace(config, router=dataclasses.replace(router, noise_in_evaluation=True)))


def test_router_losses_of_even_routers():
    """With all scores equal: z = log(C)² per side; P is even, and everyone's first choice is class 0, so LB = 1."""
    params = random_params(SMALL)
    for side in ("attention", "ffn"):
        router = params["chunks"][0][f"{side}_router"]
        router |= {name: jnp.zeros_like(router[name]) for name in ("score_kernel", "score_bias")}
    config = dataclasses.replace(SMALL, z_loss=0.5)
    mask = np.eye(2, 6, dtype=np.float32)
    total, parts = jax.jit(lambda p: reference.losses(p, IDS, jnp.asarray(IDS), config, mask=mask))(params)
    np.testing.assert_allclose(parts["z_loss"], 2 * math.log(3) ** 2, rtol=1e-5)
    np.testing.assert_allclose(parts["aux_loss"], 2.0, rtol=1e-5)
    np.testing.assert_allclose(total, parts["loss"] + 0.01 * 2 + 0.5 * parts["z_loss"], rtol=1e-5)
