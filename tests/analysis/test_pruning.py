"""Pruning: the smaller model is the full one with modules forbidden, values and gradients; and what goes first."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import small
from flax import nnx
from small import NEVER, assert_close, change, explicit, quick, random_ids, random_params

from mom_jax import losses
from mom_jax.analysis import pruning
from mom_jax.config import ChoiceConfig, ModelConfig
from mom_jax.fields import ConfigError, from_dict
from mom_jax.model import MoM, with_parameters

SMALL = change(small.SMALL, dispatch="dense", remat="none")  # compiles faster
IDS = random_ids()
RAW = {"scoring": "raw", "temperature": 1.0}
TABLE = explicit([0.0, -1.0, NEVER, 0.5], [2.0, 0.0, 0.0, 0.0], [NEVER, NEVER, 1.0, 0.0])
SIX = {"num_attn_modules": 6, "num_ffn_modules": 4, "top_k": 3}
TWO_CHUNKS = {"num_chunks": 2, "anchor_after_chunk": True}


def outcome(config, params, prior=None):
    """(loss, (logits, sums)) and the gradients of the loss."""

    def loss(params):
        output = with_parameters(config, params)(IDS, prior=prior)
        nll, count = losses.next_token(output, IDS)
        return nll / count, (output.logits, losses.LossSums(nll, count, output.routing))

    return quick(jax.value_and_grad(loss, has_aux=True))(params)


CASES = {
    "one choice, its probability": (change(SMALL, top_k=1), {"attention": [[0, 2]], "ffn": [[1, 2]]}),
    "one choice, raw": (change(SMALL, top_k=1, router=RAW), {"ffn": [[0, 1]]}),
    "three choices of fewer classes": (change(SMALL, top_k=3, skip=False), {"attention": [[1, 2]], "ffn": [[0, 2]]}),
    "three choices of fewer raw classes": (
        change(SMALL, top_k=3, skip=False, router=RAW | {"kind": "mlp"}),
        {"attention": [[0, 1]]},
    ),
    "three choices, other modules in each chunk": (
        change(SMALL, **SIX, **TWO_CHUNKS, weighted_qkv=True),
        {"attention": [[0, 2, 5], [1, 3, 4]], "ffn": [[0, 3], [1, 2]]},
    ),
    "nulls that the authors' routers have": (
        change(SMALL, num_attn_modules=3, num_ffn_modules=5, router={"classes": "max"}),
        {"attention": [[0, 2]], "ffn": [[0, 1, 2, 4]]},
    ),
    "as many classes as the FFN's": (
        change(SMALL, num_attn_modules=4, num_ffn_modules=4, router={"classes": "ffn", "kind": "gru_dev"}),
        {"attention": [[0, 3]]},
    ),
    "a prior": (change(SMALL, attention=TABLE), {"attention": [[0, 2]], "ffn": [[0, 1]]}),
    "a module or SKIP": (change(SMALL, ffn=ChoiceConfig(choice="ordered_or_skip")), {"ffn": [[0, 2]]}),
    "a preference": (
        change(SMALL, num_steps=4, attention=ChoiceConfig(preference=1.5, skip_preference=0.5), router=RAW),
        {"attention": [[1, 2]]},
    ),
    "narrow modules beside routed values": (
        change(
            SMALL,
            module_d_ff=12,
            num_ffn_modules=6,
            attention=ChoiceConfig(routes="values"),
            ffn=ChoiceConfig(preference=1.0, top_k=3, scale=2.0),
        ),
        {"ffn": [[0, 2, 3, 5]]},
    ),
    "all modules": (change(SMALL, router={"all_modules": True}), {"attention": [[0, 1]], "ffn": [[0, 2]]}),
    "one module of a side without SKIP": (change(SMALL, skip=False), {"attention": [[1]], "ffn": [[0, 2]]}),
    "sigmoids with biases": (
        change(
            SMALL,
            num_ffn_modules=4,
            router={"scoring": "sigmoid", "step_bias": 1.0, "kind": "transformer"},
            balance={"bias_rate": 0.1},
            attention=ChoiceConfig("ordered_or_skip"),
        ),
        {"ffn": [[0, 2, 3]]},
    ),
    "one module each": (
        change(SMALL, skip=False, router={"straight_through": True}),
        {"attention": [[1]], "ffn": [[0]]},
    ),
}
QUICK = ("one choice, its probability",)


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
)
def test_a_pruned_model_is_the_full_one_with_modules_forbidden(name):
    config, keep = CASES[name]
    params = random_params(config)
    if config.weights("ffn") == "raw":  # which are as large as the parameters make them
        params = jax.tree.map(lambda leaf: 0.6 * leaf, params)
    pruned, own = pruning.prune(config, params, keep)
    assert jax.tree.map(np.shape, own) == jax.tree.map(np.shape, random_params(pruned))
    assert sum(leaf.size for leaf in jax.tree.leaves(own)) < sum(leaf.size for leaf in jax.tree.leaves(params))
    for side, chunks in keep.items():
        assert pruned.modules(side) == len(chunks[0])
    assert from_dict(ModelConfig, json.loads(json.dumps(dataclasses.asdict(pruned)))) == pruned

    prior = pruning.forbidden(config, keep)
    (loss, (logits, sums)), gradients = outcome(config, params, prior)
    (small_loss, (small_logits, small_sums)), small_gradients = outcome(pruned, own)
    assert_close(small_logits, logits)
    assert_close(small_loss, loss)
    # Cutting gradients is cutting parameters; what is forbidden has none.
    assert_close(small_gradients, pruning.prune(config, gradients, keep)[1])
    for s, chunk in gradients["chunks"].items():
        for side, chunks in keep.items():
            gone = sorted(set(range(config.modules(side))) - set(chunks[s]))
            assert all(not np.any(array[np.array(gone)]) for array in chunk[side].values())
            assert not np.any(chunk[f"{side}_router"]["score_kernel"][:, np.array(gone)])
            assert np.any(chunk[side]["out_kernel"][np.array(chunks[s])]), "nothing was chosen"
    for side, stats in small_sums.routing.sides().items():
        full = sums.routing.sides()[side]
        for s in range(config.num_chunks):
            kept = keep.get(side, [range(config.modules(side))] * config.num_chunks)[s]
            for field in ("choices_C", "top1_C", "probability_C"):
                one, other = (np.asarray(getattr(of, field))[s] for of in (stats, full))
                assert_close(one[:, : len(kept)], other[:, np.array(kept)])
        assert_close((stats.entropy, stats.tokens), (full.entropy, full.tokens))


def test_what_a_call_forbids_is_the_oracles_prior():
    config = change(SMALL, top_k=3, ffn=TABLE)
    params, keep = random_params(config, seed=1), {"attention": [[1]], "ffn": [[0, 2]]}
    prior = pruning.forbidden(config, keep)
    assert {side: table.shape for side, table in prior.items()} == {"attention": (1, 3, 4), "ffn": (1, 3, 4)}
    want = np.array([[0, NEVER, NEVER, 0.5], [2, NEVER, 0, 0], [NEVER, NEVER, 1, 0]], np.float32)
    tables = {"attention": jnp.array([[NEVER, 0, NEVER, 0.0]] * 3), "ffn": jnp.asarray(want)}
    model = with_parameters(config, params)
    logits = quick(lambda prior: model(IDS, prior=prior).logits)(prior)
    assert_close(logits, reference.forward(params, IDS, config, prior=tables)["logits"])
    with pytest.raises(ValueError, match="'attention' is no routed side"):
        MoM(config.vanilla(), rngs=nnx.Rngs(0))(IDS, prior={"attention": prior["attention"]})
    with pytest.raises(AssertionError, match=r"prior\['ffn'\]"):
        model(IDS, prior={"ffn": prior["ffn"][:, :2]})


@pytest.mark.parametrize(
    ("changes", "keep", "expected"),
    [
        ({}, {"attention": [[]]}, "keep.attention=[]: must leave a module"),
        ({}, {"attention": [[0, 3]]}, "must be modules from 0 to 2, ascending"),
        ({}, {"ffn": [[1, 0]]}, "must be modules from 0 to 2, ascending"),
        ({}, {"ffn": [[0, 1]] * 2}, "must name modules for each of 1 chunks"),
        (TWO_CHUNKS, {"ffn": [[0, 1], [0]]}, "must leave as many in every chunk"),
        ({"attention": ChoiceConfig(choice="ordered")}, {"attention": [[0]]}, "is not routed; routers have ffn only"),
        ({"num_chunks": 0}, {"ffn": [[0]]}, "keep='ffn': is not routed; this model has no routers"),
        ({}, {"ffn": [[1]]}, "modules of ffn=1: must be at least 2 of 3: a pool of one module has no router"),
        (
            {"skip": False, "top_k": 1, "router": {"weights": "renormalised"}, "ffn": ChoiceConfig(scale=2.0)},
            {"ffn": [[1]]},
            "modules of ffn=1: must be at least 2 of 3",
        ),
        (
            {"attention": ChoiceConfig(routes="values")},
            {"attention": [[0, 1]]},
            "attention.routes='values': must be 'all' for pruning attention modules",
        ),
        ({"skip": False, "router": RAW}, {"ffn": [[1]]}, "modules of ffn=1: must be at least 2 of 3"),
        ({"ffn": ChoiceConfig(preference=1.0, anneal_steps=5)}, {"ffn": [[0, 1]]}, "ffn.anneal_steps=5: must be 0"),
        ({**TWO_CHUNKS, "ffn": TABLE}, {"ffn": [[0, 1], [0, 2]]}, "must be the same modules in all chunks"),
        (
            {"skip": False, "attention": explicit([0.0, 0.0, NEVER], [0.0] * 3, [0.0, NEVER, NEVER])},
            {"attention": [[1, 2]]},
            "keep.attention: leaves step 2 no class that the prior allows",
        ),
        (
            {"num_attn_modules": 3, "num_ffn_modules": 5, "router": {"classes": "max"}},
            {"ffn": [[0, 1]]},
            "router.classes='max': no smaller routers have the classes that are left: 6 for attention's 3 modules",
        ),
    ],
)
def test_what_cannot_be_pruned_is_one_line(changes, keep, expected):
    config = change(SMALL, **changes)
    with pytest.raises(ConfigError) as error:
        pruning.pruned_config(config, keep)
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def test_configurations_stay_as_they_are_where_they_can():
    config = change(SMALL, num_attn_modules=4, num_ffn_modules=4, top_k=3, router={"classes": "ffn"})
    alike = pruning.pruned_config(config, {"attention": [[0, 1]], "ffn": [[2, 3]]})
    assert alike == change(config, num_attn_modules=2, num_ffn_modules=2)
    own = pruning.pruned_config(config, {"attention": [[0, 1]]})
    assert own == change(config, num_attn_modules=2, router={"classes": "own"})
    # Without SKIP attention has two classes left, and the FFN needs three: attention's third is forbidden.
    config = change(SMALL, num_attn_modules=4, num_ffn_modules=4, top_k=4, skip=False)
    padded = pruning.pruned_config(config, {"attention": [[0, 1]], "ffn": [[0, 1, 3]]})
    assert (padded.top_k, padded.router.classes) == (3, "max")
    assert padded.attention == explicit(*[[0.0, 0.0, NEVER]] * 3)
    assert padded.ffn == ChoiceConfig()
    assert pruning.pruned_config(config, {}) == config


def test_which_modules_go_first():
    scores = np.array([[0.3, 0.1, 0.1, 0.5], [0.1, 0.4, 0.2, 0.3]])
    assert pruning.lowest_first(scores) == [[1, 2, 0, 3], [0, 2, 3, 1]]
    assert pruning.lowest_first(scores, same=True) == [[2, 0, 1, 3]] * 2
    assert pruning.keep_after([[1, 2, 0, 3], [0, 2, 3, 1]], 2) == [[0, 3], [1, 3]]
    # 1 and 3 are the most alike, and 3 is more like the rest; then 0 and 2.
    similarity = np.array([[1, 0.1, 0.6, 0.5], [0.1, 1, 0.2, 0.9], [0.6, 0.2, 1, 0.4], [0.5, 0.9, 0.4, 1]])
    assert pruning.most_redundant_first(similarity[None]) == [[3, 2, 1, 0]]
    other = similarity[::-1, ::-1]
    assert pruning.most_redundant_first(np.stack([similarity, other])) == [[3, 2, 1, 0], [0, 1, 3, 2]]
    assert len({tuple(order) for order in pruning.most_redundant_first(np.stack([similarity, other]), same=True)}) == 1
    two_chunks = change(SMALL, **TWO_CHUNKS, ffn=TABLE)
    assert [pruning.needs_same(two_chunks, side) for side in ("attention", "ffn")] == [False, True]
    assert not pruning.needs_same(change(SMALL, ffn=TABLE), "ffn")
