"""Phase 2 from phase 1: the authors' init_from_vanilla, and what they pass over in silence."""

import dataclasses
import functools

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import mom_jax as mom
from mom_jax.config import ChoiceConfig, ModelConfig, RouterConfig
from mom_jax.fields import ConfigError
from mom_jax.interop.official import params_from_official, params_to_official
from mom_jax.interop.phases import from_vanilla, is_vanilla, layer_names, preserving
from mom_jax.model import with_parameters

SMALL = ModelConfig(
    vocab_size=7,
    context_length=5,
    d_model=4,
    num_heads=2,
    num_chunks=2,
    anchor_after_chunk=True,
    num_attn_modules=2,
    num_ffn_modules=2,
    num_steps=3,
    router=RouterConfig(dim=3),
)

# Where Hugging Face's GPT-2 has what the authors' code calls otherwise.
HUGGING_FACE = {
    "ln_1": "mot_attn.attention_layernorm",
    "attn.c_attn": "mot_attn.c_attn",
    "attn.c_proj": "mot_attn.c_proj",
    "ln_2": "mot_ffn.ffn_layernorm",
    "mlp.c_fc": "mot_ffn.c_fc",
    "mlp.c_proj": "mot_ffn.c_proj",
}


def fresh(config, seed=0):
    """Parameters of which no two are alike."""
    rng = np.random.default_rng(seed)
    shapes = mom.parameters(nnx.eval_shape(lambda: mom.MoM(config, rngs=nnx.Rngs(0))))
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), shapes)


def anchors_only(config, layers):
    """A plain transformer, all its layers anchors."""
    return dataclasses.replace(config, num_bottom=layers, num_chunks=0, num_top=0)


def under(golden_pair, prefix):
    return {k.removeprefix(prefix): a for k, a in golden_pair.arrays.items() if k.startswith(prefix)}


def vanilla_of(pair):
    """(configuration, parameters) of a pair's vanilla model."""
    state = {name.removeprefix("transformer."): array for name, array in under(pair, "vanilla/").items()}
    for theirs, ours in HUGGING_FACE.items():
        state = {name.replace(f".{theirs}.", f".{ours}."): array for name, array in state.items()}
    layers = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("h."))
    assert layers == pair.meta["vanilla_n_layer"]
    config = anchors_only(pair.config, layers)
    return config, params_from_official(state, config)


def as_chunk(config, params):
    """The same transformer with its layers 1 and 2 an ordered chunk."""
    chunked = dataclasses.replace(
        config, num_bottom=1, num_chunks=1, num_attn_modules=2, num_ffn_modules=2, anchor_after_chunk=False
    ).vanilla()
    layers = params["bottom"]
    chunk = jax.tree.map(lambda *leaves: np.stack(leaves), layers[1], layers[2])
    top = {i: layers[i + 3] for i in range(len(layers) - 3)}
    parts = {"bottom": {0: layers[0]}, "chunks": {0: chunk}, "top": top}
    return dataclasses.replace(chunked, num_top=len(top)), params | parts


def one_layer_more(config, params, layer):
    group, count = ("top", "num_top") if config.num_chunks else ("bottom", "num_bottom")
    number = getattr(config, count)
    params = params | {group: params[group] | {number: layer}}
    return dataclasses.replace(config, **{count: number + 1}), params


@pytest.mark.parametrize("form", ["anchors", "ordered chunk"])
@pytest.mark.parametrize("path", golden.pair_files(), ids=lambda path: path.stem)
def test_is_what_the_authors_code_does(path, form):
    pair = golden.load(path)
    source = vanilla_of(pair)
    if form == "ordered chunk":
        source = as_chunk(*source)
    before = params_from_official(under(pair, "mom_before/"), pair.config)
    if path.stem.endswith("_b"):
        # A layer too few: the authors' code leaves the last one as it was, which we have to ask for.
        with pytest.raises(ConfigError, match=r"has 6 layers, 7 fit; layers are missing for: top/1$"):
            from_vanilla(*source, pair.config, before)
        source = one_layer_more(*source, before["top"][1])
    result, messages = from_vanilla(*source, pair.config, before)
    got, want = params_to_official(result, pair.config), under(pair, "mom_after/")
    assert got.keys() == want.keys()
    for name in want:
        # The authors leave the final layer norm at its initial value; ours is the vanilla model's.
        end = name.removeprefix("transformer.ln_f.")
        expected = want[name] if end == name else source[1]["final_norm"][{"weight": "scale", "bias": "bias"}[end]]
        np.testing.assert_array_equal(got[name], expected, err_msg=name)
    # Sublayers without a place are named, one message each.
    unused = {name.removeprefix("transformer.") for name in pair.meta["vanilla_unused"]}
    unused = {tuple(name.split(".")[1:3]) for name in unused if name.startswith("h.")}
    assert len(messages) == len({(layer, part in ("ln_2", "mlp")) for layer, part in unused})


def test_the_pairs_cover_both_kinds():
    configs = [golden.load(path).config for path in golden.pair_files()]
    assert {(c.num_attn_modules == c.num_ffn_modules, c.num_chunks, c.anchor_after_chunk) for c in configs} >= {
        (False, 1, True),
        (True, 2, False),
    }


def test_order_of_the_layers():
    """Two chunks with anchors: every layer of phase 2 carries the number of the vanilla layer it came from."""
    vanilla = anchors_only(SMALL, 8)
    numbered = fresh(vanilla)
    for i, layer in numbered["bottom"].items():
        numbered["bottom"][i] = jax.tree.map(lambda a, i=i: jnp.full_like(a, i), layer)
    result, messages = from_vanilla(vanilla, numbered, SMALL, fresh(SMALL))
    assert messages == []

    def numbers(tree):
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]
        return {float(x) for leaf in leaves for x in leaf.reshape(-1)}

    assert numbers(result["bottom"][0]) == {0}
    for side in ("attention", "ffn"):
        for s, first in ((0, 1), (1, 4)):
            for m in range(2):
                assert numbers(jax.tree.map(lambda a, m=m: a[m], result["chunks"][s][side])) == {first + m}
    assert (numbers(result["anchors"][0]), numbers(result["anchors"][1])) == ({3}, {6})
    assert numbers(result["top"][0]) == {7}
    # Routers stay as they were, the rest is the vanilla model's.
    before = fresh(SMALL)
    for s in (0, 1):
        for side in ("attention_router", "ffn_router"):
            np.testing.assert_array_equal(
                result["chunks"][s][side]["score_kernel"], before["chunks"][s][side]["score_kernel"]
            )
    np.testing.assert_array_equal(result["embed"]["tokens"], numbered["embed"]["tokens"])
    np.testing.assert_array_equal(result["final_norm"]["scale"], numbered["final_norm"]["scale"])


def test_the_counterpart_is_a_subtree():
    """With N_A = N_F, whatever H is: phase 1's parameters are phase 2's without the routers, unchanged."""
    assert SMALL.num_steps != SMALL.num_attn_modules
    vanilla = SMALL.vanilla()
    source, target = fresh(vanilla, 1), fresh(SMALL, 2)
    result, messages = from_vanilla(vanilla, source, SMALL, target)
    assert messages == []
    for s in result["chunks"]:
        assert result["chunks"][s].pop("attention_router").keys() == result["chunks"][s].pop("ffn_router").keys()
    assert jax.tree.structure(result) == jax.tree.structure(source)
    for a, b in zip(jax.tree.leaves(result), jax.tree.leaves(source), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_layer_is_cut_into_narrow_modules():
    config = dataclasses.replace(SMALL, module_d_ff=4, num_ffn_modules=4, num_attn_modules=2)
    vanilla = config.vanilla()
    source = jax.tree.map(np.asarray, fresh(vanilla, 1))
    fewer, narrow = dataclasses.replace(config, num_ffn_modules=6), dataclasses.replace(vanilla, d_ff=8)
    with pytest.raises(ConfigError, match=r"model\.num_ffn_modules=6: must be a multiple of the 4 modules"):
        from_vanilla(vanilla, source, fewer, fresh(fewer))
    with pytest.raises(ConfigError, match=r"model\.d_ff=16: the vanilla model has 8$"):
        from_vanilla(narrow, fresh(narrow), config, fresh(config))
    # One layer's FFN has a place, the other's has none.
    result, messages = from_vanilla(vanilla, source, config, fresh(config))
    assert messages == [f"chunks/{s}/module 1/ffn is dropped: chunk {s} has 4 ffn modules" for s in (0, 1)]
    for s in (0, 1):
        layer, modules = (tree["chunks"][s]["ffn"] for tree in (source, result))
        assert modules["in_kernel"].shape == (4, 4, 4)
        np.testing.assert_array_equal(np.concatenate(modules["in_kernel"], -1), layer["in_kernel"][0])
        np.testing.assert_array_equal(np.concatenate(modules["in_bias"]), layer["in_bias"][0])
        np.testing.assert_array_equal(np.concatenate(modules["out_kernel"]), layer["out_kernel"][0])
        np.testing.assert_allclose(modules["out_bias"].sum(0), layer["out_bias"][0], rtol=1e-6)
        for name in ("norm_scale", "norm_bias"):
            np.testing.assert_array_equal(modules[name], np.repeat(layer[name][:1], 4, 0))
        for name in ("in_bias", "out_kernel"):
            assert np.shares_memory(modules[name], layer[name])
        assert jax.tree.map(np.shape, modules) == jax.tree.map(np.shape, fresh(config)["chunks"][s]["ffn"])


def test_the_initial_parameters_are_not_changed():
    target = fresh(SMALL, 2)
    copy = jax.tree.map(np.array, target)
    from_vanilla(SMALL.vanilla(), fresh(SMALL.vanilla(), 1), SMALL, target)
    for a, b in zip(jax.tree.leaves(target), jax.tree.leaves(copy), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("attention", "ffn", "dropped"), [(1, 3, "attention"), (3, 2, "ffn")])
def test_sublayers_without_a_place_are_named(attention, ffn, dropped):
    config = dataclasses.replace(SMALL, num_attn_modules=attention, num_ffn_modules=ffn)
    source = fresh(config.vanilla(), 1)
    result, messages = from_vanilla(config.vanilla(), source, config, fresh(config))
    few = min(attention, ffn)
    assert messages == [
        f"chunks/{s}/module {m}/{dropped} is dropped: chunk {s} has {few} {dropped} modules"
        for s in (0, 1)
        for m in range(few, 3)
    ]
    for s in (0, 1):
        np.testing.assert_array_equal(
            result["chunks"][s][dropped]["out_bias"], source["chunks"][s][dropped]["out_bias"][:few]
        )


def test_a_new_classification_head_stays_as_it_is():
    classifier = dataclasses.replace(SMALL, num_classes=3)
    target = fresh(classifier)
    result, _ = from_vanilla(SMALL.vanilla(), fresh(SMALL.vanilla(), 1), classifier, target)
    np.testing.assert_array_equal(result["head"]["kernel"], target["head"]["kernel"])


def test_a_head_of_its_own_comes_along():
    untied = dataclasses.replace(SMALL, tie_embeddings=False)
    source = fresh(untied.vanilla(), 1)
    result, _ = from_vanilla(untied.vanilla(), source, untied, fresh(untied))
    np.testing.assert_array_equal(result["lm_head"]["kernel"], source["lm_head"]["kernel"])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            anchors_only(SMALL, 6),
            r"has 6 layers, 8 fit; layers are missing for: anchors/1, top/0$",
        ),
        (
            dataclasses.replace(SMALL.vanilla(), num_top=2),
            r"has 9 layers, 8 fit; layers would be left over: top/1$",
        ),
        (dataclasses.replace(SMALL.vanilla(), vocab_size=8), r"model\.vocab_size=7: the vanilla model has 8$"),
        (dataclasses.replace(SMALL.vanilla(), d_ff=5), r"model\.d_ff=16: the vanilla model has 5$"),
        (
            dataclasses.replace(SMALL.vanilla(), d_model=8, num_heads=4),
            r"model\.d_model=4: the vanilla model has 8; model\.num_heads=2: .* has 4; model\.d_ff=16: .* has 32$",
        ),
        (dataclasses.replace(SMALL.vanilla(), num_heads=1), r"model\.num_heads=2: the vanilla model has 1$"),
        (dataclasses.replace(SMALL.vanilla(), activation="relu"), r"model\.activation='gelu_new': .* has 'relu'$"),
        (
            dataclasses.replace(SMALL.vanilla(), layer_norm_epsilon=0.1),
            r"model\.layer_norm_epsilon=1e-05: .* has 0\.1$",
        ),
        (dataclasses.replace(SMALL.vanilla(), num_classes=2), r"init_from: head would be left over$"),
        (
            dataclasses.replace(SMALL.vanilla(), tie_embeddings=False),
            r"model\.tie_embeddings=True: the vanilla model has False$",
        ),
        (SMALL, r"init_from: the source is no vanilla transformer"),
    ],
    ids=[
        "missing",
        "surplus",
        "vocabulary",
        "inner width",
        "several",
        "heads",
        "activation",
        "epsilon",
        "head",
        "untied",
        "not vanilla",
    ],
)
def test_what_does_not_fit_is_named_in_one_line(source, message):
    with pytest.raises(ConfigError, match=message) as error:
        from_vanilla(source, fresh(source), SMALL, fresh(SMALL))
    assert "\n" not in str(error.value)


def test_arrays_that_are_missing_are_named():
    source = fresh(SMALL.vanilla())
    del source["bottom"][0]["ffn"]["in_bias"]
    with pytest.raises(ConfigError, match=r"bottom/0/ffn/in_bias is missing$"):
        from_vanilla(SMALL.vanilla(), source, SMALL, fresh(SMALL))


def test_what_is_vanilla():
    assert is_vanilla(SMALL.vanilla())
    assert is_vanilla(anchors_only(SMALL, 3))
    # One module on each side that runs once is a layer; that runs twice it is not.
    one = dataclasses.replace(SMALL, num_attn_modules=1, num_ffn_modules=1, num_steps=1)
    assert is_vanilla(one)
    assert not is_vanilla(dataclasses.replace(one, num_steps=2))
    for schedule, same in (((0, 1), True), ((1, 0), False)):
        ordered = ChoiceConfig("ordered", schedule=schedule)
        assert is_vanilla(dataclasses.replace(SMALL.vanilla(), ffn=ordered)) == same
    assert not is_vanilla(SMALL)
    assert not is_vanilla(dataclasses.replace(SMALL.vanilla(), attention=SMALL.attention))
    assert len(layer_names(SMALL)) == SMALL.num_layers == 8


FREE = {"num_attn_modules": 3, "num_ffn_modules": 3, "num_steps": 3, "num_chunks": 2, "context_length": 8}
NARROW = {"top_k": 1, "module_d_ff": 4, "num_ffn_modules": 12}
STARTS = {
    "k1": {"top_k": 1},
    "k1 renormalised": {"top_k": 1, "router": dataclasses.replace(SMALL.router, weights="renormalised")},
    "k1 beyond": {"top_k": 1, "num_steps": 5},
    "k1 without skip": {"top_k": 1, "skip": False},
    "k2": {"top_k": 2},
    "k2 beyond": {"top_k": 2, "num_steps": 4},
    "k2 weighted": {"top_k": 2, "weighted_qkv": True, "skip": False},
    "k3 weighted": {"top_k": 3, "weighted_qkv": True},
    "mlp": {"top_k": 2, "router": dataclasses.replace(SMALL.router, kind="mlp")},
    "k of each side": {"skip": False, "attention": ChoiceConfig(top_k=1), "ffn": ChoiceConfig(top_k=2)},
    "attention ordered": {"top_k": 2, "attention": ChoiceConfig("ordered")},
    "values": {"top_k": 2, "attention": ChoiceConfig(routes="values")},
    # A layer's FFN in pieces: exact where its router finds them alike.
    "narrow": NARROW | {"ffn": ChoiceConfig(top_k=4)},
    "narrow with skip": NARROW | {"ffn": ChoiceConfig(top_k=5, scale=4.0), "num_steps": 4},
    "narrow signs": NARROW
    | {"ffn": ChoiceConfig(top_k=4), "router": dataclasses.replace(SMALL.router, straight_through=True)},
}


def start(**fields):
    return dataclasses.replace(SMALL, **(FREE | {"attention": ChoiceConfig(), "ffn": ChoiceConfig()} | fields))


@pytest.mark.parametrize(
    "fields",
    [pytest.param(f, id=n, marks=[] if n == "k2" else pytest.mark.slow) for n, f in STARTS.items()],
)
def test_a_preserving_start_is_the_vanilla_model_and_ends_free(fields):
    free = start(**fields)
    config = preserving(free, anneal_steps=10)
    free = dataclasses.replace(free, ffn=dataclasses.replace(free.ffn, scale=config.ffn.scale))
    vanilla = fresh(free.vanilla(), 1)
    params, _ = from_vanilla(free.vanilla(), vanilla, config, fresh(config))
    # New routers' logits are small; these are still larger.
    for chunk in params["chunks"].values():
        for side in config.routed_sides:
            chunk[f"{side}_router"] = {name: 0.05 * array for name, array in chunk[f"{side}_router"].items()}
        if config.module_d_ff:
            scores = ("score_kernel", "score_bias")
            chunk["ffn_router"] |= {name: 0.0 * chunk["ffn_router"][name] for name in scores}
    ids = jnp.asarray(np.random.default_rng(0).integers(0, SMALL.vocab_size, (2, 8)), jnp.int32)

    @functools.partial(jax.jit, static_argnums=0)
    def logits(config, params, step=None):
        return with_parameters(config, params)(ids, step=step).logits

    expected, ended = logits(free.vanilla(), vanilla), logits(free, params)
    atol = 1e-5 * np.abs(expected).max() if config.module_d_ff else 1e-3
    np.testing.assert_allclose(logits(config, params, jnp.asarray(0)), expected, atol=atol)
    np.testing.assert_allclose(logits(config, params, jnp.asarray(10)), ended, atol=1e-5)
    assert np.abs(ended - expected).max() > 0.05


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"top_k": 2, "skip": False}, r"model\.top_k=2: must be 1, or 2 with SKIP, or model\.weighted_qkv set"),
        ({"top_k": 3}, r"model\.top_k=3: must be 1"),
        ({"num_steps": 2}, r"model\.num_steps=2: must be at least the 3 modules"),
        ({"num_steps": 4, "skip": False, "top_k": 1}, r"model\.skip=False: must skip the steps beyond"),
        ({"num_attn_modules": 2}, r"model\.num_attn_modules=2: must equal num_ffn_modules=3"),
        ({"capacity_factor": 1.0}, r"model\.capacity_factor=1\.0"),
        ({"ffn": ChoiceConfig(choice="ordered_or_skip")}, r"model\.ffn=ChoiceConfig\(choice='ordered_or_skip'"),
        ({"ffn": ChoiceConfig("ordered", schedule=(0, 0, 1))}, r"model\.ffn=.* each of the 3 layers once, in order"),
        ({"attention": ChoiceConfig("ordered", schedule=(0, 1, 2, 0)), "num_steps": 4}, r"model\.attention=.* once"),
        (NARROW, r"model\.top_k=1: must be at least the 4 modules of a layer"),
        (NARROW | {"ffn": ChoiceConfig(top_k=4, scale=2.0)}, r"model\.ffn\.scale=2\.0: must be 1 or 4"),
        (NARROW | {"num_ffn_modules": 10}, r"model\.num_ffn_modules=10: must be a multiple of the 4 modules"),
        (NARROW | {"num_ffn_modules": 8}, r"model\.num_attn_modules=3: must equal num_ffn_modules=8 / 4 for"),
        (
            {"top_k": 3, "weighted_qkv": True, "router": dataclasses.replace(SMALL.router, straight_through=True)},
            r"model\.top_k=3: .* or model\.router\.straight_through=False",
        ),
        ({"ffn": ChoiceConfig(exit=True)}, r"model\.ffn=ChoiceConfig\(.*exit=True"),
        ({"ffn": ChoiceConfig(capacity=0.5)}, r"model\.ffn=ChoiceConfig\(.*capacity=0\.5"),
        ({"router": dataclasses.replace(SMALL.router, scoring="raw")}, r"model\.router\.scoring='raw'"),
        ({"router": dataclasses.replace(SMALL.router, all_modules=True)}, r"model\.router\.all_modules=True"),
    ],
)
def test_what_cannot_preserve_is_refused_in_one_line(fields, message):
    with pytest.raises(ConfigError, match=message) as error:
        preserving(start(**fields), anneal_steps=10)
    assert "\n" not in str(error.value)
