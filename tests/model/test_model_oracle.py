"""The model against the oracle (helpers/reference.py): values and gradients, every field of the configuration."""

import dataclasses
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from flax import nnx
from small import EXHAUSTIVE, NEVER, ORDERED, SMALL, change, explicit, quick, random_ids, random_params

import mom_jax as mom
from mom_jax import losses
from mom_jax.analysis.cost import parameter_count
from mom_jax.config import ChoiceConfig, ModelConfig, RouterConfig
from mom_jax.config.router import KINDS

OR_SKIP = ChoiceConfig(choice="ordered_or_skip")
GAP = 1e-4  # scores that decide a choice must lie further apart, or rounding decides


LEANING = explicit((0.0, 1.0, -0.5, 0.3), (0.0, NEVER, 2.0, 0.0), (NEVER, NEVER, 0.0, NEVER))

# name: fields that differ from SMALL, or a whole configuration; `seed` makes comfortable gaps; `step` is the model's.
CASES = {
    "gru": {},
    "gru-k1": {"top_k": 1},
    "gru-k1-renormalised": {"top_k": 1, "router": {"weights": "renormalised"}},
    "gru-k2-probability": {"router": {"weights": "probability"}, "weighted_qkv": True},
    "gru-raw": {"router": {"scoring": "raw"}, "z_loss": 0.02},
    "gru-raw-straight-through": {"router": {"scoring": "raw", "straight_through": True}, "weighted_qkv": True},
    "softmax-straight-through": {"router": {"straight_through": True}, "activation": "relu"},
    "linear-sigmoid-k1": {
        "router": {"kind": "linear", "scoring": "sigmoid", "norm": "layer", "step_bias": 1.5},
        "attention": ChoiceConfig(preference=1.0, scale=2.0),
        "top_k": 1,
        "num_steps": 4,
    },
    "mlp-sigmoid-renormalised": {
        "router": {"kind": "mlp", "scoring": "sigmoid", "weights": "renormalised", "step_bias": 0.0},
        "balance": {"kind": "depthwise", "softmax_again": True},
        "ffn": LEANING,
        "top_k": 3,
    },
    "gru-sigmoid-all-modules": {"router": {"scoring": "sigmoid", "all_modules": True}, "attention": LEANING},
    "sigmoid-capacity": {
        "router": {"kind": "mingru", "scoring": "sigmoid"},
        "ffn": ChoiceConfig(capacity=0.5),
        "masked": True,
    },
    "mingru": {"router": {"kind": "mingru", "norm": "layer"}, "z_loss": 0.1, "num_chunks": 2, "num_steps": 2},
    "transformer": {"router": {"kind": "transformer", "step_bias": 1.0}, "num_steps": 4, "z_loss": 0.02},
    "transformer-heads-raw": {"router": {"kind": "transformer", "heads": 4, "scoring": "raw", "norm": "layer"}},
    "hierarchical": {"router": {"kind": "hierarchical", "norm": "layer"}, "num_ffn_modules": 2, "top_k": 1},
    "hierarchical-k2-prior": {"router": {"kind": "hierarchical", "step_bias": 2.0}, "attention": LEANING},
    "balance-bias": {"balance": {"bias_rate": 0.01}, "attention": LEANING},
    "balance-bias-sigmoid": {
        "balance": {"bias_rate": 0.01},
        "router": {"kind": "linear", "scoring": "sigmoid"},
        "ffn": ChoiceConfig(exit=True),
        "weighted_qkv": True,
    },
    "all-modules": {"router": {"all_modules": True}, "balance": {"kind": "depthwise"}},
    "all-modules-raw-prior": {"router": {"all_modules": True, "scoring": "raw"}, "attention": LEANING, "ffn": LEANING},
    "mlp": {"router": {"kind": "mlp"}, "z_loss": 0.1, "activation": "gelu", "d_ff": None},
    "mlp-raw-k3-no-skip": {"router": {"kind": "mlp", "scoring": "raw"}, "top_k": 3, "skip": False, "num_steps": 1},
    "gru-dev": {"router": {"kind": "gru_dev", "dim": 5}, "top_k": 4, "weighted_qkv": True},
    "gru-dev-raw": {"router": {"kind": "gru_dev", "scoring": "raw", "weights": "raw"}, "num_steps": 1},
    "gru-random-mean": {"router": {"kind": "gru_random"}},
    "gru-random-noise": {"router": {"kind": "gru_random", "noise_in_evaluation": True}},
    "gru-random-raw": {"router": {"kind": "gru_random", "scoring": "raw"}},
    "attention-2-ffn-4-max": {"num_attn_modules": 2, "num_ffn_modules": 4, "router": {"classes": "max"}},
    "attention-4-ffn-2-own": {"num_attn_modules": 4, "num_ffn_modules": 2, "skip": False},
    "attention-2-ffn-4-ffn": {"num_attn_modules": 2, "num_ffn_modules": 4, "router": {"kind": "mlp", "classes": "ffn"}},
    "attention-1": {"num_attn_modules": 1, "balance": {"needs_routed_attention": True}, "z_loss": 0.1},
    "attention-1-balanced": {"num_attn_modules": 1},
    "ffn-1": {"num_ffn_modules": 1, "balance": {"softmax_again": True}},
    "both-1": {"num_attn_modules": 1, "num_ffn_modules": 1, "top_k": 1},
    "ordered": {"attention": ORDERED, "ffn": ORDERED},
    "mixture-of-experts": {"attention": ORDERED, "balance": {"kind": "depthwise", "softmax_again": True}},
    "ffn-ordered": {"ffn": ORDERED, "layer_norm_epsilon": 1e-2},
    "ordered-or-skip": {"attention": OR_SKIP, "ffn": OR_SKIP, "top_k": 1},
    "scheduled": {
        "attention": ChoiceConfig("ordered", schedule=(2, 0, 2, 1, 0)),
        "ffn": ChoiceConfig("ordered_or_skip", schedule=(0, 0, 1, 2, 1)),
        "num_steps": 5,
        "top_k": 1,
    },
    "capacity": {
        "attention": ChoiceConfig("ordered_or_skip", capacity=0.5),
        "ffn": ChoiceConfig(capacity=0.3),
        "masked": True,
        "capacity_loss": 0.3,
    },
    "capacity-exit-raw": {
        "attention": dataclasses.replace(LEANING, capacity=0.6, exit=True),
        "ffn": ChoiceConfig(exit=True),
        "router": {"scoring": "raw"},
    },
    "preference-annealed": {
        "attention": ChoiceConfig(preference=3.0, anneal_steps=10),
        "ffn": ChoiceConfig(preference=-1.0, anneal_steps=20),
        "num_steps": 5,
        "step": 4,
    },
    "preference-of-skip": {
        "attention": ChoiceConfig(preference=2.0, skip_preference=1.5, anneal_steps=10),
        "ffn": ChoiceConfig(skip_preference=-1.0, anneal_steps=20),
        "num_steps": 4,
    },
    "preference-full": {"attention": ChoiceConfig(preference=2.0, anneal_steps=10), "skip": False, "num_steps": 4},
    "prior": {"attention": LEANING, "ffn": LEANING, "z_loss": 0.1},
    "prior-raw": {"attention": LEANING, "router": {"scoring": "raw"}, "z_loss": 0.02},
    "chunks": {
        "num_chunks": 2,
        "anchor_after_chunk": True,
        "num_steps": 2,
        "num_heads": 4,
        "num_bottom": 1,
        "num_top": 2,
    },
    "no-chunks": {"num_chunks": 0, "num_bottom": 2},
    "k-of-each-side": {
        "attention": ChoiceConfig(top_k=1, scale=0.7),
        "ffn": ChoiceConfig(top_k=3, scale=1.5),
        "router": {"dim": 6},
    },
    "narrow-modules": {
        "module_d_ff": 8,
        "num_ffn_modules": 9,
        "num_bottom": 1,
        "ffn": ChoiceConfig(preference=1.0, top_k=4, scale=3.0),
        "router": {"classes": "max"},
    },
    "narrow-modules-or-skip": {
        "module_d_ff": 12,
        "num_ffn_modules": 5,
        "ffn": ChoiceConfig("ordered_or_skip", schedule=(2, 0, 1)),
    },
    "values": {"attention": ChoiceConfig(routes="values"), "num_heads": 4},
    "values-scheduled": {
        "attention": ChoiceConfig("ordered_or_skip", schedule=(2, 0, 2, 1), routes="values"),
        "num_steps": 4,
        "weighted_qkv": True,
        "masked": True,
    },
    "mask": {"masked": True, "z_loss": 0.1, "balance": {"kind": "depthwise"}},
    "classifier": {"num_classes": 3, "masked": True},
    "untied": {"tie_embeddings": False, "num_chunks": 0, "num_bottom": 1, "masked": True},
    "untied-classifier": {"tie_embeddings": False, "num_classes": 3, "num_steps": 1},
    "official": ModelConfig.official(
        **{f: getattr(SMALL, f) for f in ("vocab_size", "context_length", "d_model", "num_heads", "d_ff", "num_steps")},
        num_attn_modules=2,
        num_ffn_modules=3,
        top_k=9,
        router=RouterConfig(dim=8, temperature=1.0),
    ),
}
# Compiling takes seconds a case: these are tested always, the others by `make test-slow`.
QUICK = """
gru-k1 mlp mixture-of-experts untied
""".split()  # noqa: SIM905
# What others have one by one, together, or of two of a kind the one that needs less: by `make test-exhaustive`.
COMBINED = """
gru-k1-renormalised gru-raw-straight-through softmax-straight-through gru-sigmoid-all-modules transformer-heads-raw
hierarchical-k2-prior balance-bias all-modules-raw-prior mlp-raw-k3-no-skip gru-dev-raw gru-random-mean gru-random-raw
attention-4-ffn-2-own attention-2-ffn-4-ffn attention-1 both-1 ffn-ordered preference-of-skip preference-full prior-raw
narrow-modules-or-skip values-scheduled untied-classifier
""".split()  # noqa: SIM905
EXTRAS = ("seed", "step", "masked")
SEEDS = dict.fromkeys(
    (
        "all-modules-raw-prior",
        "gru-k2-probability",
        "mlp",
        "gru-random-noise",
        "gru-random-raw",
        "attention-1",
        "attention-1-balanced",
        "ffn-ordered",
        "prior",
        "preference-annealed",
        "mask",
        "mingru",
    ),
    1,
) | {"sigmoid-capacity": 9}  # the others' is 0


def configuration(name):
    case = CASES[name]
    if isinstance(case, ModelConfig):
        return case
    return change(SMALL, **{field: value for field, value in case.items() if field not in EXTRAS})


def extra(name, field):
    return None if isinstance(CASES[name], ModelConfig) else CASES[name].get(field)


def smallest_gap(config, side, scores):
    """Between scores [..., C] that decide which classes are chosen and which is the first."""
    decisive = 1 if config.router.all_modules else config.side_top_k(side)
    ranked = -np.sort(-np.asarray(scores), -1)[..., : decisive + 1]
    upper, lower = ranked[..., :-1], ranked[..., 1:]
    allowed = upper > NEVER
    return (upper[allowed] - lower[allowed]).min(initial=np.inf)


def assert_same(got, want, name, tolerance=2e-5):
    """Equal up to `tolerance` of the largest entry, or of 1."""
    got, want = np.asarray(got), np.asarray(want)
    atol = tolerance * max(1.0, np.abs(want[np.isfinite(want)]).max(initial=0))
    np.testing.assert_allclose(got, want, rtol=0, atol=atol, err_msg=name)


def marks_of(name):
    return () if name in QUICK else EXHAUSTIVE if name in COMBINED else pytest.mark.slow


@pytest.mark.parametrize("name", [pytest.param(name, marks=marks_of(name)) for name in CASES])
def test_equals_the_oracle(name):
    config = configuration(name)
    params = random_params(config, SEEDS.get(name, 0))
    ids = random_ids()
    rng = np.random.default_rng(1)
    mask = jnp.asarray(np.arange(7)[None] < np.array([[7], [4]]), jnp.int32) if extra(name, "masked") else None
    labels = jnp.where(jnp.arange(7)[None] == 2, -100, ids)
    noise, last_index = None, None
    if config.router.noise_in_evaluation and config.router.kind == "gru_random":
        shape = (config.num_chunks, config.num_steps, *ids.shape, config.router.dim)
        noise = {side: jnp.asarray(rng.uniform(size=shape), jnp.float32) for side in ("attention", "ffn")}
    if config.num_classes:
        labels, last_index = jnp.array([2, 0]), jnp.array([6, 3])
    step = extra(name, "step")

    def ours(params):
        model = mom.with_parameters(config, params)
        kwargs = {"mask": mask, "step": step, "noise": noise and mom.Noise(**noise)}
        output = model(ids, capture=("hidden", "routing"), **kwargs)
        if config.num_classes:
            logits = model.classify(output.hidden, last_index)
            sums = losses.cross_entropy(logits, labels)
        else:
            logits = output.logits
            sums = losses.next_token(output, labels)
        result = losses.finish(losses.LossSums(*sums, output.routing), config)
        return result.total, (result, output, logits)

    kwargs = {"mask": mask, "noise": noise, "step": step, "last_index": last_index}
    gradient, (result, output, logits) = quick(jax.grad(ours, has_aux=True))(params)

    def oracle(params):
        return reference.losses_and_forward(params, ids, labels, config, **kwargs)

    want_gradient, (parts, want) = jax.jit(jax.grad(oracle, has_aux=True))(params)

    compare_values(config, output.captured, want)
    assert_same(output.hidden, want["hidden_final"], "hidden")
    assert_same(logits, want["logits"], "logits")
    for field, part in (("loss", "loss"), ("balance", "aux_loss"), ("z", "z_loss"), ("capacity", "capacity_loss")):
        assert_same(getattr(result, field), parts[part], part)
    chex.assert_trees_all_equal_structs(gradient, want_gradient)
    jax.tree_util.tree_map_with_path(
        lambda path, a, b: assert_same(a, b, jax.tree_util.keystr(path), 5e-5), gradient, want_gradient
    )


def compare_values(config, captured, want):
    """Scores, choices, states and hidden states of every step."""
    names = ["embed", *(f"bottom/{i}" for i in range(config.num_bottom))]
    for s in range(config.num_chunks):
        names += [f"chunks/{s}"] + [f"anchors/{s}"] * config.anchor_after_chunk
    names += [f"top/{i}" for i in range(config.num_top)] + ["pre_norm"]
    theirs = [value for name, value in want.items() if name.startswith("hidden/")] + [want["hidden_pre_lnf"]]
    ours = [x for name in names for x in (captured[name] if "chunks" in name else [captured[name]])]
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        assert_same(a, b, f"hidden state {i}")

    for side, short in (("attention", "attn"), ("ffn", "ffn")):
        if not config.num_chunks or config.kind(side) != "routed":
            assert f"{side}/scores" not in captured
            continue
        for i in range(config.num_chunks * config.num_steps):
            have = {name: captured[f"{side}/{name}"][divmod(i, config.num_steps)] for name in ("scores", "index")}
            scores, chosen = want[f"{short}_scores/{i}"], np.asarray(want[f"{short}_topk_ids/{i}"])
            deciding = [scores if config.router.scoring == "raw" else np.where(scores > 0, scores, NEVER)]
            if config.balance.bias_rate:
                deciding.append(want[f"{short}_ranked/{i}"])
            gap = min(smallest_gap(config, side, values) for values in deciding)
            assert gap > GAP, "rounding may decide a choice: take another seed"
            assert_same(have["scores"], scores, f"{side} scores {i}")
            if not config.router.all_modules:
                # A forbidden class may have been taken for want of others: it is no class at all in the model.
                forbidden = np.take_along_axis(np.asarray(scores), np.minimum(chosen, config.classes(side) - 1), -1)
                forbidden = forbidden <= (NEVER if config.router.scoring == "raw" else 0)
                np.testing.assert_array_equal(have["index"], np.where(forbidden, config.classes(side), chosen))
            if config.router.kind not in ("linear", "mlp"):
                state = captured[f"{side}/state"][divmod(i, config.num_steps)]
                assert_same(state, want[f"{short}_gru_state/{i}"].reshape(state.shape), f"{side} state {i}")


OFFICIAL_KINDS = ("mlp", "gru", "gru_dev", "gru_random")
# What has no meaning for the oracle, or has tests of its own.
APART = {
    "vocab_size",
    "context_length",
    "d_model",
    "dropout",
    "dtype",
    "remat",
    "dispatch",
    "capacity_factor",
    "exchange_room",
    "attention_kernel",
    "balance.over",
    "router.noise",
    "router.noise_steps",
    "router.score_init",
    "ffn.routes",  # has one value only
}


def test_the_cases_vary_every_field():
    configs = [configuration(name) for name in CASES]
    for field in dataclasses.fields(ModelConfig):
        values = [getattr(config, field.name) for config in configs]
        if dataclasses.is_dataclass(values[0]) and field.name != "dropout":
            for part in dataclasses.fields(values[0]):
                name = f"{field.name}.{part.name}"
                assert name in APART or len({getattr(value, part.name) for value in values}) > 1, name
        elif field.name not in APART:
            assert len(set(values)) > 1, field.name
    routers = {(c.router.kind, c.router.scoring) for c in configs}
    assert {kind for kind, _ in routers} == {
        kind for kind, cls in KINDS.items() if cls.__module__.startswith("mom_jax")
    }
    assert {(kind, scoring) for kind in OFFICIAL_KINDS for scoring in ("softmax", "raw")} <= routers


@pytest.mark.parametrize("name", CASES)
def test_parameters_are_as_many_as_the_cost_model_says(name):
    config = configuration(name)
    model = nnx.eval_shape(lambda: mom.MoM(config, rngs=nnx.Rngs(0)))
    assert (
        sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(mom.parameters(model))) == parameter_count(config).total
    )
