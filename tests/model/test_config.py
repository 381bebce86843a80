"""Configurations: what is refused and how, reading from JSON, and related configurations."""

import dataclasses
import json
import math

import pytest

from mom_jax.config import BalanceConfig, ChoiceConfig, DropoutConfig, ModelConfig, RouterConfig
from mom_jax.fields import ConfigError, describe, from_dict, matches, nearest
from train.config import CheckpointConfig, Config, DataConfig, OptimConfig, Phase

ORDERED = ChoiceConfig(choice="ordered")
OR_SKIP = ChoiceConfig(choice="ordered_or_skip")
INF = math.inf


def table(rows, columns):
    return ChoiceConfig(prior=((0.0,) * columns,) * rows)


def complaint(make, *args, **kwargs):
    with pytest.raises(ConfigError) as error:
        make(*args, **kwargs)
    text = str(error.value)
    assert "\n" not in text
    return text


# Every complaint has the form field=value: what is allowed.


@pytest.mark.parametrize(
    ("cls", "fields", "text"),
    [
        (ModelConfig, {"num_steps": 0}, "num_steps=0: must be at least 1"),
        (ModelConfig, {"top_k": 0}, "top_k=0: must be at least 1"),
        (ModelConfig, {"vocab_size": -1}, "vocab_size=-1: must be at least 0"),
        (ModelConfig, {"num_attn_modules": 0}, "num_attn_modules=0: must be at least 1"),
        (ModelConfig, {"num_ffn_modules": -1}, "num_ffn_modules=-1: must be at least 1"),
        (ModelConfig, {"num_bottom": -1}, "num_bottom=-1: must be at least 0"),
        (ModelConfig, {"z_loss": -0.5}, "z_loss=-0.5: must be at least 0"),
        (ModelConfig, {"exchange_room": 0.0}, "exchange_room=0.0: must be positive"),
        (ModelConfig, {"exchange_room": math.inf}, "exchange_room=inf: must be finite"),
        (ModelConfig, {"z_loss": 1e-50}, "z_loss=1e-50: is 0 in float32, which has nothing below 1.2e-38"),
        (ModelConfig, {"d_ff": 0}, "d_ff=0: must be at least 1"),
        (ModelConfig, {"num_classes": 0}, "num_classes=0: must be at least 1"),
        (ModelConfig, {"module_d_ff": 0}, "module_d_ff=0: must be at least 1"),
        (ModelConfig, {"module_d_ff": 500}, "module_d_ff=500: must divide d_ff=3072"),
        (
            ModelConfig,
            {"module_d_ff": 1536, "num_ffn_modules": 16, "ffn": ORDERED, "top_k": 1},
            "module_d_ff=1536: must be d_ff=3072 or None where ffn.choice='ordered': a step has one module there",
        ),
        (
            ModelConfig,
            {"module_d_ff": 1536, "ffn": ChoiceConfig("ordered_or_skip")},
            "num_steps=8: must equal ffn's 2 layers that its modules are cut from where "
            "ffn.choice='ordered_or_skip' and ffn.schedule=None",
        ),
        (
            ModelConfig,
            {"module_d_ff": 1536, "ffn": ChoiceConfig(schedule=(0, 1, 2, 3) * 2)},
            "ffn.schedule=(0, 1, 2, 3, 0, 1, 2, 3): must name layers of 2 modules each from 0 to 1",
        ),
        (
            ModelConfig,
            {"ffn": ChoiceConfig(routes="values")},
            "ffn.routes='values': needs queries and keys; an FFN has only 'all'",
        ),
        (
            ModelConfig,
            {"attention": ChoiceConfig(routes="values")},
            "attention.routes='values': needs one of the 4 modules for each of the 8 steps: as many, or "
            "attention.schedule",
        ),
        (
            ModelConfig,
            {"num_attn_modules": 1, "attention": ChoiceConfig(routes="values")},
            "attention.routes='values': needs a router on the attention side, and there is none",
        ),
        (ModelConfig, {"layer_norm_epsilon": 0.0}, "layer_norm_epsilon=0.0: must be positive"),
        (ModelConfig, {"num_heads": 5}, "num_heads=5: must divide d_model=768"),
        (ModelConfig, {"top_k": 6}, "top_k=6: must be at most the 5 classes of the attention router"),
        (ModelConfig, {"top_k": 5, "skip": False}, "top_k=5: must be at most the 4 classes of the attention router"),
        (
            ModelConfig,
            {"top_k": 4, "num_ffn_modules": 2},
            "top_k=4: must be at most the 3 classes of the ffn router",
        ),
        (
            ModelConfig,
            {"ffn": ORDERED},
            "num_steps=8: must equal ffn's 4 modules where ffn.choice='ordered' and ffn.schedule=None",
        ),
        (
            ModelConfig,
            {"attention": OR_SKIP},
            "num_steps=8: must equal attention's 4 modules where attention.choice='ordered_or_skip' "
            "and attention.schedule=None",
        ),
        (
            ModelConfig,
            {"ffn": ChoiceConfig("ordered", schedule=(0, 1, 2))},
            "ffn.schedule=(0, 1, 2): must have a module for each of the 8 steps",
        ),
        (
            ModelConfig,
            {"attention": ChoiceConfig("ordered", schedule=(0, 1, 4)), "num_steps": 3},
            "attention.schedule=(0, 1, 4): must name modules from 0 to 3",
        ),
        (
            ModelConfig,
            {"attention": ChoiceConfig(schedule=(0, 1, -1)), "num_steps": 3},
            "attention.schedule=(0, 1, -1): must name modules from 0 to 3",
        ),
        (
            ModelConfig,
            {"num_ffn_modules": 1, "ffn": ChoiceConfig("ordered", schedule=(0, 1)), "num_steps": 2},
            "ffn.schedule=(0, 1): must name modules from 0 to 0",
        ),
        (ChoiceConfig, {"schedule": (0, 1.0)}, "schedule=(0, 1.0): must be a tuple of an integer or None"),
        (ChoiceConfig, {"capacity": 0.0}, "capacity=0.0: must be above 0 and at most 1, or None"),
        (ChoiceConfig, {"capacity": 1.5}, "capacity=1.5: must be above 0 and at most 1, or None"),
        (ChoiceConfig, {"capacity": math.nan}, "capacity=nan: must be finite"),
        (ModelConfig, {"attention": ChoiceConfig(exit=True), "skip": False}, "attention.exit=True: needs skip=True"),
        (ModelConfig, {"ffn": ChoiceConfig(capacity=0.5), "skip": False}, "ffn.capacity=0.5: needs skip=True"),
        (
            ModelConfig,
            {"attention": ChoiceConfig(exit=True), "router": RouterConfig(all_modules=True)},
            "attention.exit=True: needs router.all_modules=False",
        ),
        (
            ModelConfig,
            {"attention": ChoiceConfig(exit=True), "ffn": ORDERED, "num_steps": 4},
            "attention.exit=True: needs a router on the ffn side; ffn.choice='ordered' has none",
        ),
        (
            ModelConfig,
            {"ffn": ChoiceConfig(exit=True), "num_attn_modules": 1},
            "ffn.exit=True: needs a router on the attention side; its pool has one module",
        ),
        (
            ModelConfig,
            {"ffn": ChoiceConfig("ordered", capacity=0.5), "num_steps": 4},
            "ffn.capacity=0.5: needs a router on the ffn side; ffn.choice='ordered' has none",
        ),
        (ModelConfig, {"capacity_loss": -1.0}, "capacity_loss=-1.0: must be at least 0"),
        (ModelConfig, {"capacity_loss": INF}, "capacity_loss=inf: must be finite"),
        (
            ModelConfig,
            {"attention": OR_SKIP, "num_steps": 4, "skip": False},
            "skip=False: attention.choice='ordered_or_skip' needs skip=True",
        ),
        (
            ModelConfig,
            {"ffn": table(7, 5)},
            "ffn.prior=(7, 5): must have the shape (num_steps, classes) = (8, 5)",
        ),
        (
            ModelConfig,
            {"attention": table(8, 4)},
            "attention.prior=(8, 4): must have the shape (num_steps, classes) = (8, 5)",
        ),
        (
            ModelConfig,
            {"num_attn_modules": 5, "router": RouterConfig(classes="ffn", all_modules=True)},
            "router.classes='ffn': needs a class for each of attention's 5 modules",
        ),
        (ModelConfig, {"dtype": "float16"}, "dtype='float16': must be one of 'float32', 'bfloat16'"),
        (ModelConfig, {"d_model": 16.0}, "d_model=16.0: must be an integer"),
        (ModelConfig, {"num_steps": True}, "num_steps=True: must be an integer"),
        (ModelConfig, {"skip": 1}, "skip=1: must be true or false"),
        (ModelConfig, {"d_ff": "4"}, "d_ff='4': must be an integer or None"),
        (ModelConfig, {"z_loss": "0"}, "z_loss='0': must be a number"),
        (ModelConfig, {"router": {"dim": 3}}, "router={'dim': 3}: must be RouterConfig"),
        (
            RouterConfig,
            {"kind": "lstm"},
            "kind='lstm': must be a registered router: linear, mlp, gru, gru_dev, gru_random, mingru, transformer, "
            "hierarchical; import the module that registers your own (--import FILE)",
        ),
        (RouterConfig, {"kind": "transformer", "dim": 8, "heads": 3}, "heads=3: must divide dim=8"),
        (
            RouterConfig,
            {"kind": "hierarchical", "scoring": "sigmoid"},
            "scoring='sigmoid': must be 'softmax' with kind='hierarchical', which has probabilities",
        ),
        (RouterConfig, {"step_bias": float("inf")}, "step_bias=inf: must be finite"),
        (RouterConfig, {"score_init": -1.0}, "score_init=-1.0: must be at least 0"),
        (RouterConfig, {"noise": -0.1}, "noise=-0.1: must be at least 0"),
        (
            RouterConfig,
            {"noise": 0.1, "all_modules": True},
            "noise=0.1: must be 0 with all_modules=True, where nothing is ranked",
        ),
        (
            RouterConfig,
            {"scoring": "sigmoid", "weights": "raw"},
            "weights='raw': with scoring='sigmoid' use one of ('auto', 'renormalised', 'probability')",
        ),
        (
            ModelConfig,
            {"router": RouterConfig(kind="hierarchical"), "skip": False},
            "router.kind='hierarchical': needs skip=True, which it decides about first",
        ),
        (BalanceConfig, {"bias_rate": -1.0}, "bias_rate=-1.0: must be at least 0"),
        (
            ModelConfig,
            {"router": RouterConfig(all_modules=True), "balance": BalanceConfig(bias_rate=0.1)},
            "balance.bias_rate=0.1: must be 0 with router.all_modules=True, where nothing is ranked",
        ),
        (RouterConfig, {"dim": 0}, "dim=0: must be at least 1"),
        (RouterConfig, {"temperature": 0.0}, "temperature=0.0: must be positive"),
        (
            RouterConfig,
            {"scoring": "raw", "weights": "probability"},
            "weights='probability': with scoring='raw' use one of ('auto', 'raw')",
        ),
        (
            RouterConfig,
            {"weights": "raw"},
            "weights='raw': with scoring='softmax' use one of ('auto', 'renormalised', 'probability')",
        ),
        (ChoiceConfig, {"preference": INF}, "preference=inf: must be finite"),
        (ChoiceConfig, {"anneal_steps": -1}, "anneal_steps=-1: must be at least 0"),
        (ChoiceConfig, {"skip_preference": INF}, "skip_preference=inf: must be finite"),
        (ChoiceConfig, {"choice": "ordered", "skip_preference": 1.0}, "skip_preference=1.0: needs choice='free'"),
        (
            ModelConfig,
            {"ffn": ChoiceConfig(skip_preference=1.0), "skip": False},
            "skip=False: ffn.skip_preference=1.0 needs skip=True",
        ),
        (ChoiceConfig, {"choice": "ordered", "preference": 1.0}, "preference=1.0: needs choice='free'"),
        (ChoiceConfig, {"choice": "ordered", "prior": ((0.0,),)}, "prior=((0.0,),): needs choice='free'"),
        (
            ChoiceConfig,
            {"prior": ((0.0, 1.0), (-INF, -INF))},
            "prior[1]=(-inf, -inf): must be logits below infinity that leave some class allowed",
        ),
        (
            ChoiceConfig,
            {"prior": ((0.0, INF),)},
            "prior[0]=(0.0, inf): must be logits below infinity that leave some class allowed",
        ),
        (
            ChoiceConfig,
            {"prior": ((),)},
            "prior[0]=(): must be logits below infinity that leave some class allowed",
        ),
        (BalanceConfig, {"weight": -1.0}, "weight=-1.0: must be at least 0"),
        (DropoutConfig, {"attention": 1.0}, "attention=1.0: must be at least 0 and below 1"),
        (DataConfig, {"length": 1}, "length=1: must be at least 2"),
        (OptimConfig, {"clip_norm": 0.0}, "clip_norm=0.0: must be positive"),
        (OptimConfig, {"beta2": 1.0}, "beta2=1.0: must be at least 0 and below 1"),
        (OptimConfig, {"accumulation": 0}, "accumulation=0: must be at least 1"),
        (CheckpointConfig, {"every": 0}, "every=0: must be at least 1"),
    ],
)
def test_complaints(cls, fields, text):
    assert complaint(cls, **fields) == text


def test_a_prior_with_nan_is_refused():
    assert complaint(ChoiceConfig, prior=((0.0, math.nan),)).startswith("prior[0]=(0.0, nan): must be logits")


@pytest.mark.parametrize(
    "fields",
    [
        {"num_attn_modules": 1, "num_ffn_modules": 1, "top_k": 7, "ffn": ORDERED},  # a pool of one has no choice
        {"num_chunks": 0, "top_k": 7, "attention": ORDERED},
        {"num_attn_modules": 2, "router": RouterConfig(classes="max"), "top_k": 5},
        {"attention": ORDERED, "num_steps": 4, "skip": False},
        {"top_k": 5},
        {"attention": table(8, 5)},
        {"attention": ChoiceConfig("ordered", schedule=(0, 1, 2, 3) * 2)},
        {"num_attn_modules": 1, "attention": ChoiceConfig(schedule=(0,) * 8)},
        {"ffn": ChoiceConfig(capacity=1), "attention": ORDERED, "num_steps": 4},
        {"module_d_ff": 1536, "num_ffn_modules": 16, "ffn": ChoiceConfig("ordered_or_skip", top_k=2)},
        {"module_d_ff": 768, "num_ffn_modules": 5, "ffn": ChoiceConfig(schedule=(0, 1) * 4)},  # as pruning leaves it
        {"attention": ChoiceConfig(routes="values", schedule=(0, 1, 2, 3) * 2)},
    ],
)
def test_configurations_that_may_be(fields):
    ModelConfig(**fields)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ({"model": {"num_step": 3}}, "model.num_step=3: unknown field; did you mean 'num_steps'?"),
        ({"model": {"router": {"kinds": "gru"}}}, "model.router.kinds='gru': unknown field; did you mean 'kind'?"),
        ({"model": {"router": {"dim": 0}}}, "model.router.dim=0: must be at least 1"),
        ({"model": {"top_k": 9}}, "model.top_k=9: must be at most the 5 classes of the attention router"),
        ({"model": {"d_model": "768"}}, "model.d_model='768': must be an integer"),
        ({"model": 3}, "model=3: must be a table of ModelConfig's fields"),
        ({"zzz": 3}, "zzz=3: unknown field; known names: analysis, checkpoint, data, "),
        ({"phases": [{"name": "a"}]}, "phases[0]: missing field 'steps'"),
        (
            {"phases": [{"name": "a", "steps": 3, "optim": {"beta": 1}}]},
            "phases[0].optim.beta=1: unknown field; did you",
        ),
        ({"phases": []}, "phases=(): must have at least one row"),
        (
            {"phases": [{"name": "a", "steps": 3, "optim": {"warmup_steps": 4}}]},
            "phases[0].optim.warmup_steps=4: with decay_steps must be at most the 3 steps of the phase 'a'",
        ),
        (
            {"phases": [{"name": "a", "steps": 3, "init_from": "previous"}]},
            "phases[0].init_from='previous': has no phase before it",
        ),
        ({"data": {"length": 2048}}, "data.length=2048: must be at most model.context_length=1024"),
        (
            {"data": {"batch_size": 3}, "phases": [{"name": "a", "steps": 3, "optim": {"accumulation": 2}}]},
            "phases[0].optim.accumulation=2: must divide data.batch_size=3",
        ),
    ],
)
def test_complaints_from_json_name_the_path(data, text):
    assert complaint(from_dict, Config, data).startswith(text)


def test_phases_of_the_same_name_are_refused():
    assert "phases=['a', 'a']" in complaint(Config, phases=(Phase("a", 1), Phase("a", 2)))


# Types.


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        (1, int, True),
        (True, int, False),
        (1, float, True),
        (True, float, False),
        ("1", float, False),
        (None, int | None, True),
        ((1.0, 2), tuple[float, ...], True),
        ([1.0], tuple[float, ...], False),
        (("a", 1.0), tuple[str, float], True),
        (("a",), tuple[str, float], False),
        (((0.0,), (1, 2.0)), tuple[tuple[float, ...], ...] | None, True),
    ],
)
def test_matches(value, hint, expected):
    assert matches(value, hint) == expected


def test_words_for_types():
    assert describe(tuple[float, ...] | None) == "a tuple of a number or None"
    assert nearest("num_step", ["top_k", "num_steps"]) == "did you mean 'num_steps'?"


# JSON.


@pytest.mark.parametrize(
    "config",
    [
        ModelConfig(),
        ModelConfig.official(router=RouterConfig(kind="mlp", scoring="raw"), d_ff=100, num_classes=2),
        ModelConfig(attention=ChoiceConfig("ordered_or_skip", (0, 3) * 4, True), ffn=ChoiceConfig(capacity=0.5)),
        ModelConfig(num_steps=2, num_attn_modules=1, ffn=ChoiceConfig(prior=((0, -INF, 1, 2, -INF), (0.5,) * 5))),
        Config(
            model=ModelConfig(attention=ChoiceConfig(preference=2.0, anneal_steps=10)),
            phases=(Phase("a", 5, optim=OptimConfig(multipliers=(("embed/*", 0.5), ("*", 2.0)), freeze=("a", "b"))),),
            resume="runs/x",
        ),
    ],
    ids=["default", "official", "special", "prior", "experiment"],
)
def test_json_returns_the_same(config):
    text = json.dumps(dataclasses.asdict(config))
    again = from_dict(type(config), json.loads(text))
    assert again == config
    assert hash(again) == hash(config)  # a static argument of jitted functions


def test_missing_fields_have_their_defaults():
    assert from_dict(Config, {"model": {"router": {"dim": 8}}}) == Config(model=ModelConfig(router=RouterConfig(dim=8)))


# Related configurations.


@pytest.mark.parametrize(
    ("kind", "scoring", "weights", "classes"),
    [
        ("gru", "softmax", "renormalised", "max"),
        ("gru_random", "raw", "raw", "max"),
        ("mlp", "softmax", "renormalised", "ffn"),
        ("gru_dev", "raw", "raw", "ffn"),
    ],
)
def test_official(kind, scoring, weights, classes):
    """The middle column of the table of behaviours."""
    router = RouterConfig(kind=kind, scoring=scoring, dim=16, temperature=0.5)
    config = ModelConfig.official(
        num_attn_modules=2, num_ffn_modules=3, router=router, balance=BalanceConfig(weight=0.2)
    )
    assert config.weights("attention") == config.weights("ffn") == config.router.weights == weights  # at K = 1 too
    assert config.top_k == 1
    assert config.router.classes == classes
    assert config.classes("attention") == config.classes("ffn") == 4
    assert config.router.noise_in_evaluation
    fixed = {"softmax_again": True, "needs_routed_attention": True, "over": "micro_batch"}
    assert config.balance == BalanceConfig(weight=0.2, **fixed)
    assert (config.router.dim, config.router.temperature) == (16, 0.5)
    assert not config.weighted_qkv


def test_our_defaults_are_the_right_column():
    config = ModelConfig(num_attn_modules=2, num_ffn_modules=3)
    assert config.weights("ffn") == "probability"
    assert dataclasses.replace(config, top_k=2).weights("ffn") == "renormalised"
    mixed = dataclasses.replace(config, ffn=ChoiceConfig(top_k=2))
    assert (mixed.weights("attention"), mixed.weights("ffn")) == ("probability", "renormalised")
    assert (mixed.choices("attention"), mixed.choices("ffn")) == (1, 2)
    assert dataclasses.replace(config, top_k=2, router=RouterConfig(scoring="raw")).weights("ffn") == "raw"
    assert (config.classes("attention"), config.classes("ffn")) == (3, 4)
    assert not config.balance.softmax_again
    assert not config.balance.needs_routed_attention
    assert not config.router.noise_in_evaluation


@pytest.mark.parametrize(
    ("fields", "top_k"),
    [
        ({"top_k": 9, "num_attn_modules": 2, "num_ffn_modules": 3}, 4),
        ({"top_k": 9, "num_attn_modules": 3, "num_ffn_modules": 2, "skip": False}, 3),
        ({"top_k": 9, "num_attn_modules": 2, "num_ffn_modules": 3, "router": RouterConfig(kind="mlp")}, 4),
        ({"top_k": 3}, 3),
    ],
)
def test_official_cuts_k_to_the_classes(fields, top_k):
    assert ModelConfig.official(**fields).top_k == top_k


def test_official_refuses_a_k_below_one():
    assert complaint(ModelConfig.official, top_k=0) == "top_k=0: must be at least 1"


def test_vanilla():
    config = ModelConfig(num_chunks=2, anchor_after_chunk=True, num_attn_modules=3, num_ffn_modules=5, num_steps=7)
    vanilla = config.vanilla()
    assert (vanilla.num_attn_modules, vanilla.num_ffn_modules, vanilla.num_steps) == (5, 5, 5)
    assert vanilla.kind("attention") == vanilla.kind("ffn") == "ordered"
    assert config.num_layers == vanilla.num_layers == vanilla.depth == 1 + 2 * (5 + 1) + 1
    assert config.depth == 1 + 2 * (7 + 1) + 1
    assert vanilla.vanilla() == vanilla
    # What only routers use has its default there.
    assert dataclasses.replace(config, d_ff=7, z_loss=0.5, skip=False).vanilla() == dataclasses.replace(vanilla, d_ff=7)


def test_vanilla_of_a_model_with_a_prior_of_other_steps():
    config = ModelConfig(attention=table(8, 5), top_k=5)
    assert config.vanilla().attention == ORDERED


def test_related_configurations_of_special_cases():
    config = ModelConfig(attention=ChoiceConfig("ordered_or_skip", (0, 3) * 4, True, 0.5), ffn=ChoiceConfig(exit=True))
    assert config.vanilla() == ModelConfig(num_steps=4, attention=ORDERED, ffn=ORDERED)
    assert config.schedule("attention") == (0, 3) * 4
    assert config.schedule("ffn") == tuple(range(8))
    assert (config.has_capacity, config.has_exit) == (True, True)
    causal = config.causal()
    assert (causal.has_capacity, causal.has_exit) == (False, True)
    assert causal.for_inference() == config.for_inference()
    assert dataclasses.replace(causal, attention=config.attention) == config


def test_kinds():
    config = ModelConfig(num_attn_modules=1, ffn=ORDERED, num_steps=4)
    assert (config.kind("attention"), config.kind("ffn")) == ("shared", "ordered")
    assert dataclasses.replace(config, num_ffn_modules=1).kind("ffn") == "shared"
    assert ModelConfig(ffn=OR_SKIP, num_steps=4).kind("ffn") == "routed"


def test_at_step():
    strong = ChoiceConfig(preference=4.0, skip_preference=2.0, anneal_steps=8)
    config = ModelConfig(attention=strong, ffn=ChoiceConfig(preference=2.0))
    # Half way the preferred one of 5 classes has half of the prior and a fifth of the rest, six times as much as each
    # other one.
    assert config.classes("attention") == 5
    expected = [4.0, math.log(16), math.log(6), 0.0, 0.0]
    assert [config.at_step(n).attention.preference for n in (0, 2, 4, 8, 100)] == pytest.approx(expected)
    skip = [config.at_step(n).attention.skip_preference for n in (0, 2, 4, 8, 100)]
    assert skip == pytest.approx([strength / 2 for strength in expected])
    for n in (0, 2, 100):
        fixed = config.at_step(n)
        assert fixed.attention.anneal_steps == 0
        assert fixed.ffn == config.ffn  # not annealed: kept
        assert fixed.at_step(50) == fixed


def test_derived_sizes():
    config = ModelConfig(d_model=12, num_heads=3, num_attn_modules=2, router=RouterConfig(all_modules=True))
    assert (config.inner_width, config.head_dim, config.pool_size) == (48, 4, 4)
    assert (config.choices("attention"), config.choices("ffn")) == (2, 4)
    assert dataclasses.replace(config, d_ff=5, router=RouterConfig(), top_k=3).choices("attention") == 3
    assert not DropoutConfig().active
    assert DropoutConfig(residual=0.1).active


def test_an_exchange_may_have_less_room_than_an_even_share():
    assert ModelConfig(exchange_room=0.3).exchange_room == 0.3


def test_a_large_integer_is_a_float_where_floats_are_wanted():
    """JAX would take it for an integer of 32 bits."""
    assert type(ModelConfig(z_loss=10**10).z_loss) is float
    assert type(ModelConfig(z_loss=1).z_loss) is int
    with pytest.raises(ConfigError, match=r"z_loss=1000.*: must be at most"):
        ModelConfig(z_loss=10**40)


def test_a_text_is_of_whole_characters():
    """Of a command line that is no UTF-8 Python makes halves."""
    with pytest.raises(ConfigError, match=r"run='q\\udcff': must be UTF-8"):
        Config(run="q\udcff")
