"""The authors' configurations and state dicts, there and back."""

import dataclasses
import json

import golden
import numpy as np
import pytest

from mom_jax.config import BalanceConfig, ChoiceConfig, ModelConfig, RouterConfig
from mom_jax.fields import ConfigError
from mom_jax.interop import official
from mom_jax.interop.official import config_from_official, config_to_official, params_from_official, params_to_official

GOLDENS = pytest.mark.parametrize("path", golden.golden_files(), ids=lambda path: path.stem)
SMALL = ModelConfig.official(
    vocab_size=7,
    context_length=5,
    d_model=4,
    num_heads=2,
    num_bottom=1,
    num_top=0,
    anchor_after_chunk=True,
    num_attn_modules=1,
    num_ffn_modules=2,
    num_steps=2,
    router=RouterConfig(kind="mlp", dim=3),
)


def random_state(config, prefix="transformer."):
    rng = np.random.default_rng(0)
    state = {}
    for entry in official._entries(config):
        state[entry.name.replace("transformer.", prefix)] = rng.normal(size=entry.shape).astype(np.float32)
    return state


def assert_identical(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


# Parameters.


@GOLDENS
def test_parameters_return_bit_for_bit(path):
    g = golden.load(path)
    params = params_from_official(g.state_dict, g.config)
    assert_identical(params_to_official(params, g.config), g.state_dict)


def test_where_parameters_go():
    state = random_state(SMALL)
    params = params_from_official(state, SMALL)
    chunk = params["chunks"][0]
    assert set(params) == {"embed", "bottom", "chunks", "anchors", "final_norm"}
    assert set(chunk) == {"attention", "ffn", "ffn_router"}
    np.testing.assert_array_equal(params["bottom"][0]["ffn"]["in_kernel"], state["transformer.h.0.mot_ffn.c_fc.weight"])
    qkv = chunk["attention"]["qkv_kernel"][0]  # query, key and value apart
    np.testing.assert_array_equal(qkv.reshape(4, 12), state["transformer.h.1.mot_attn.c_attn.weight"])
    np.testing.assert_array_equal(chunk["ffn"]["out_bias"][1], state["transformer.h.1.mot_ffn.c_proj.1.bias"])
    score = state["transformer.h.1.mot_ffn.router.router.2.weight"]
    np.testing.assert_array_equal(chunk["ffn_router"]["score_kernel"], score.T)
    np.testing.assert_array_equal(
        params["anchors"][0]["attention"]["norm_scale"], state["transformer.h.2.mot_attn.attention_layernorm.weight"]
    )


def test_prefix_and_tied_head_are_optional():
    with_prefix, without = random_state(SMALL), random_state(SMALL, prefix="")
    a, b = (params_to_official(params_from_official(state, SMALL), SMALL) for state in (with_prefix, without))
    assert_identical(a, b)
    assert_identical(a, with_prefix | {"lm_head.weight": with_prefix["transformer.wte.weight"]})


def test_classifier():
    config = dataclasses.replace(SMALL, num_classes=3)
    for prefix in ("transformer.", ""):
        state = random_state(config, prefix)
        params = params_from_official(state, config)
        np.testing.assert_array_equal(params["head"]["kernel"], state["score.weight"].T)
        assert_identical(params_to_official(params, config), random_state(config))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"transformer.h.1.mot_ffn.c_fc.1.bias": None}, r"h\.1\.mot_ffn\.c_fc\.1\.bias \(16,\) is missing"),
        ({"transformer.h.9.mot_attn.bias": np.zeros(2)}, r"h\.9\.mot_attn\.bias \(2,\) is surplus"),
        ({"transformer.wpe.weight": np.zeros((5, 9))}, r"wpe\.weight has the shape \(5, 9\) instead of \(5, 4\)"),
        ({"lm_head.weight": np.zeros((7, 4))}, r"lm_head\.weight \(7, 4\): must equal transformer\.wte\.weight"),
        ({"lm_head.weight": np.zeros((8, 4))}, r"lm_head\.weight \(8, 4\): must equal .* \(7, 4\)"),
    ],
)
def test_state_dicts_that_do_not_fit(change, message):
    state = {name: array for name, array in (random_state(SMALL) | change).items() if array is not None}
    with pytest.raises(ConfigError, match=message):
        params_from_official(state, SMALL)


def test_every_problem_is_named():
    state = random_state(SMALL)
    del state["transformer.ln_f.bias"]
    del state["transformer.wte.weight"]
    with pytest.raises(ConfigError, match=r"wte\.weight \(7, 4\) is missing; .*ln_f\.bias \(4,\) is missing"):
        params_from_official(state, SMALL)


def test_parameters_that_do_not_fit():
    def params():
        return params_from_official(random_state(SMALL), SMALL)

    missing, surplus, misshapen = params(), params(), params()
    del missing["bottom"][0]["ffn"]["in_bias"]
    surplus["top"] = surplus["bottom"]
    misshapen["chunks"][0]["ffn"]["in_bias"] = misshapen["chunks"][0]["ffn"]["in_bias"][:1]
    for tree, message in (
        (missing, r"bottom\.0\.ffn\.in_bias \(16,\) is missing"),
        (surplus, r"top\.0\.attention\.norm_scale \(4,\) is surplus"),
        (misshapen, r"chunks\.0\.ffn\.in_bias has the shape \(1, 16\) instead of \(2, 16\)"),
    ):
        with pytest.raises(ConfigError, match=message):
            params_to_official(tree, SMALL)


# Configurations.


@GOLDENS
def test_golden_configurations_return(path):
    g = golden.load(path)
    back = config_to_official(g.config)
    json.dumps(back)
    assert config_from_official(back) == g.config
    theirs = g.meta["config"]
    # Other values only where several of theirs mean the same.
    same = back.keys() & theirs.keys() - {"n_layer", "depth_per_chunk", "routing_top_k"}
    assert {name: back[name] for name in same} == {name: theirs[name] for name in same}
    assert config_from_official(theirs | back) == g.config


def test_omitted_options_have_the_authors_defaults():
    config = config_from_official({})
    assert (config.num_chunks, config.num_top, config.num_attn_modules, config.num_steps) == (4, 2, 8, 32)
    assert (config.router.kind, config.router.scoring, config.weights("ffn")) == ("mlp", "raw", "raw")
    assert config.dropout.residual == 0.1
    assert config_from_official({"num_attn": 2, "num_ffn": 3, "depth_multiplier": 1.4}).num_steps == 4


@pytest.mark.parametrize("router_type", official.ROUTER_TYPES)
def test_every_router_type_returns(router_type):
    config = config_from_official({"router_type": router_type})
    assert config_to_official(config)["router_type"] == router_type


@pytest.mark.parametrize(
    ("router_type", "same"),
    [
        ("softmax_dev_gru", "gru_dev_softmax"),
        ("dev", "gru_dev"),
        ("random_gru", "gru_random"),
        ("softmax-random-gru", "gru_random_softmax"),
        ("mygru", "gru"),
        ("gru_sigmoid", "gru"),  # a word that their GRU does not look for
        ("gru_dev_sigmoid_softmax", "gru_dev_softmax"),
        ("softmax_naive", "naive_softmax"),
        ("naive_gru_dev", "naive"),
        ("naive_random", "naive"),
    ],
)
def test_router_types_are_read_by_what_they_contain(router_type, same):
    config = config_from_official({"router_type": router_type})
    assert config == config_from_official({"router_type": same})
    assert config_to_official(config)["router_type"] == same


def test_number_of_classes_as_hugging_face_writes_it():
    classifier = {"architectures": ["GPT2MoTForSequenceClassification"]}
    assert config_from_official(classifier).num_classes == 2
    assert config_from_official(classifier | {"id2label": {"0": "a", "1": "b", "2": "c"}}).num_classes == 3
    assert config_from_official({"architectures": ["GPT2MoTLMHeadModel"]}).num_classes is None
    assert config_from_official({"num_labels": 4}).num_classes == 4


def test_bind_ffn_attn_only_demands_equal_numbers():
    assert config_from_official({"bind_ffn_attn": True}) == config_from_official({})
    with pytest.raises(ConfigError, match="num_attn=3"):
        config_from_official({"bind_ffn_attn": True, "num_attn": 3})


@pytest.mark.parametrize(
    ("theirs", "message"),
    [
        ({"router_type": "linear"}, "router_type='linear': must contain 'naive', 'dev' or 'gru'"),
        ({"router_type": "GRU"}, "router_type='GRU': must contain"),
        ({"router_type": None}, "router_type=None: must contain"),
        ({"router_type": "random_gru_dev"}, "router_type='random_gru_dev': GRU-dev with noise is not supported"),
        ({"router_type": "gru_dev_sigmoid"}, "router_type='gru_dev_sigmoid': fails in the authors' code"),
        ({"activation_function": "silu"}, "activation_function='silu'"),
        ({"depthwise_bal_loss": None}, "depthwise_bal_loss=None"),
        ({"scale_attn_weights": False}, "scale_attn_weights=False"),
        ({"initializer_range": 0.5}, "initializer_range=0.5"),
        ({"routing_topk": 2}, "routing_topk=2: .* did you mean 'routing_top_k'"),
        (
            {"num_attn": 8, "num_ffn": 4},
            "router.classes='ffn': gives the attention router too few classes for 8 modules",
        ),
    ],
)
def test_options_we_cannot_express(theirs, message):
    with pytest.raises(ConfigError, match=message):
        config_from_official(theirs)


@pytest.mark.parametrize(
    ("ours", "field"),
    [
        (ModelConfig(), r"router\.weights='auto'"),
        (dataclasses.replace(SMALL, tie_embeddings=False), r"tie_embeddings=False: the authors' code has only True"),
        (dataclasses.replace(SMALL, z_loss=0.1), r"z_loss=0\.1"),
        (dataclasses.replace(SMALL, capacity_factor=1.5), r"capacity_factor=1\.5"),
        (dataclasses.replace(SMALL, ffn=ChoiceConfig(choice="ordered")), r"ffn\.choice='ordered'"),
        (dataclasses.replace(SMALL, ffn=ChoiceConfig(preference=1.0)), r"ffn\.preference=1\.0"),
        (dataclasses.replace(SMALL, num_attn_modules=2, ffn=ChoiceConfig(exit=True), skip=True), r"ffn\.exit=True"),
        (dataclasses.replace(SMALL, ffn=ChoiceConfig(capacity=0.5), skip=True), r"ffn\.capacity=0\.5"),
        (
            dataclasses.replace(SMALL, module_d_ff=SMALL.inner_width // 2),
            r"module_d_ff=\d+: the authors' code has only",
        ),
        (
            dataclasses.replace(
                SMALL, num_steps=2, num_attn_modules=2, attention=ChoiceConfig(routes="values"), skip=True
            ),
            r"attention\.routes='values'",
        ),
        (dataclasses.replace(SMALL, balance=BalanceConfig()), r"balance\.softmax_again=False"),
        (dataclasses.replace(SMALL, balance=dataclasses.replace(SMALL.balance, bias_rate=0.1)), r"bias_rate=0\.1"),
        *(
            (dataclasses.replace(SMALL, router=dataclasses.replace(SMALL.router, **fields)), message)
            for fields, message in [
                (
                    {"kind": "mingru"},
                    r"router\.kind, router\.scoring='mingru, softmax': the authors' code has only mlp, raw; mlp,",
                ),
                ({"scoring": "sigmoid"}, r"router\.kind, router\.scoring='mlp, sigmoid'"),
                ({"norm": "layer"}, r"router\.norm='layer'"),
                ({"step_bias": 1.0}, r"router\.step_bias=1\.0"),
                ({"noise": 0.5}, r"router\.noise=0\.5"),
            ]
        ),
        (
            dataclasses.replace(SMALL, router=dataclasses.replace(SMALL.router, weights="probability")),
            r"router\.weights='probability'",
        ),
        (
            dataclasses.replace(
                SMALL, num_attn_modules=3, router=dataclasses.replace(SMALL.router, kind="gru", classes="own")
            ),
            r"router\.classes='own'",
        ),
    ],
)
def test_configurations_the_authors_cannot_express(ours, field):
    with pytest.raises(ConfigError, match=field):
        config_to_official(ours)


def test_how_we_compute_is_not_written():
    router = dataclasses.replace(SMALL.router, score_init=0.1)
    fast = dataclasses.replace(SMALL, dtype="bfloat16", remat="full", dispatch="dense", router=router)
    assert config_from_official(config_to_official(fast)) == SMALL


def test_every_field_and_option_is_accounted_for():
    """A field added to the configuration must be mapped, or shown to be left out on purpose."""
    mapped = {field for option in official.OPTIONS.values() for field in option.fields}
    ours = {f.name for f in dataclasses.fields(ModelConfig)}
    assert ours - {field.split(".")[0] for field in mapped} == {
        "attention",
        "ffn",
        "module_d_ff",
        "tie_embeddings",
        "z_loss",
        "capacity_loss",
        "capacity_factor",
        *(name for name in official.HOW_NOT_WHAT if "." not in name),
    }
    assert {f"router.{f.name}" for f in dataclasses.fields(RouterConfig)} - mapped == {
        "router.weights",
        "router.classes",
        "router.noise_in_evaluation",
        "router.heads",
        "router.norm",
        "router.step_bias",
        "router.noise",
        "router.noise_steps",
        "router.score_init",
    }
