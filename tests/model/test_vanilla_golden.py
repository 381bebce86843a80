"""Golden 14, the authors' four plain layers, as ordered steps and as routed steps that have no choice."""

import dataclasses
import math

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import mom_jax as mom
from mom_jax import losses
from mom_jax.config import ChoiceConfig
from mom_jax.interop.official import params_from_official

LOADED = golden.load(golden.FOLDER / "14_vanilla_chunks0.npz")
PLAIN = LOADED.config
# Layers 1 and 2 of the four become a chunk, 0 and 3 stay anchors.
MOM = dataclasses.replace(
    PLAIN,
    num_bottom=1,
    num_chunks=1,
    num_top=1,
    anchor_after_chunk=False,
    num_attn_modules=2,
    num_ffn_modules=2,
    num_steps=2,
    top_k=1,
)
DIAGONAL = ChoiceConfig(prior=tuple(tuple(0.0 if c == h else -math.inf for c in range(3)) for h in range(2)))


def assembled(tree):
    """A tree of four layers, bottom and top, as one bottom anchor, a chunk of two and one top anchor."""
    layers = [tree[group][i] for group in ("bottom", "top") for i in sorted(tree.get(group, {}))]
    assert len(layers) == 4
    chunk = jax.tree.map(lambda *leaves: np.stack(leaves), layers[1], layers[2])
    rest = {name: part for name, part in tree.items() if name not in ("bottom", "top")}
    return rest | {"bottom": {0: layers[0]}, "chunks": {0: chunk}, "top": {0: layers[3]}}


def run(config, params):
    """((total loss, output), gradient) on the golden's batch."""
    ids, labels = jnp.asarray(LOADED.arrays["input_ids"]), jnp.asarray(LOADED.arrays["labels"])

    def total(params):
        output = mom.with_parameters(config, params)(ids, capture=("routing",))
        result = losses.finish(losses.LossSums(*losses.next_token(output, labels), output.routing), config)
        return result.loss, output

    quick = {"xla_backend_optimization_level": 0}  # compiling takes all the time
    return jax.jit(jax.value_and_grad(total, has_aux=True), compiler_options=quick)(jax.tree.map(jnp.asarray, params))


def assert_golden(value_and_gradient):
    (loss, output), gradient = value_and_gradient
    np.testing.assert_allclose(output.logits, LOADED.arrays["logits"], rtol=0, atol=LOADED.tolerance("logits"))
    np.testing.assert_allclose(loss, LOADED.arrays["loss"], rtol=0, atol=LOADED.tolerance("loss"))
    # The parameters' places hold for their gradients too.
    want = assembled(params_from_official(LOADED.grads, PLAIN))
    shared = jax.tree.map(lambda _, own: own, want, {**gradient, "chunks": {0: without_routers(gradient["chunks"][0])}})
    for (path, value), own in zip(jax.tree_util.tree_leaves_with_path(want), jax.tree.leaves(shared), strict=True):
        assert np.abs(value).max() > 0 or "qkv_bias" in jax.tree_util.keystr(path)
        np.testing.assert_allclose(own, value, rtol=0, atol=1e-4, err_msg=jax.tree_util.keystr(path))


def without_routers(chunk):
    return {side: chunk[side] for side in ("attention", "ffn")}


@pytest.fixture(scope="module")
def parameters():
    return assembled(params_from_official(LOADED.state_dict, PLAIN))


def test_ordered_steps_are_the_authors_layers(parameters):
    config = MOM.vanilla()
    assert {config.kind("attention"), config.kind("ffn")} == {"ordered"}
    assert_golden(run(config, parameters))


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["probability", "renormalised"])
def test_routed_steps_without_a_choice_are_the_authors_layers(parameters, weights):
    router = dataclasses.replace(MOM.router, weights=weights, classes="own", dim=8)
    config = dataclasses.replace(MOM, attention=DIAGONAL, ffn=DIAGONAL, router=router, skip=True)
    assert {config.kind("attention"), config.kind("ffn")} == {"routed"}
    fresh = mom.parameters(mom.MoM(config, rngs=nnx.Rngs(0)))
    routers = {name: part for name, part in fresh["chunks"][0].items() if name.endswith("_router")}
    # Far from zero, so that only the prior can make the choice.
    routers = jax.tree.map(lambda a: 20 * a, routers)
    result = run(config, parameters | {"chunks": {0: parameters["chunks"][0] | routers}})
    for side in ("attention", "ffn"):
        np.testing.assert_array_equal(result[0][1].captured[f"{side}/weight"], 1)
        index = result[0][1].captured[f"{side}/index"]
        np.testing.assert_array_equal(index, np.broadcast_to(np.arange(2)[None, :, None, None, None], index.shape))
    assert_golden(result)
    # The probability is 1 whatever the router says.
    for name in routers:
        assert all(np.abs(leaf).max() == 0 for leaf in jax.tree.leaves(result[1]["chunks"][0][name])), name
