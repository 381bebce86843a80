"""Decoding from the cache against the full forward pass, at every position, for all kinds of models."""

import jax.numpy as jnp
import numpy as np
import pytest
from small import ORDERED, SMALL, change, quick, random_params

import mom_jax as mom
from mom_jax import dispatch
from mom_jax.config import ChoiceConfig

ROWS, PROMPTS, LENGTHS = 2, (2, 4), (5, 7)  # real tokens of a row's prompt, and in all; three steps
ROUTED = change(SMALL, num_chunks=2, anchor_after_chunk=True, num_bottom=1, context_length=9)
SLOW = pytest.mark.slow


def forward(config, params, ids, mask):
    """Logits of the full pass, rows padded on the right, and the choices."""
    output = quick(lambda: mom.with_parameters(config, params)(ids, mask=mask, capture=("routing",)))()
    return np.asarray(output.logits), output.captured


def programs(config, params, unstacked):
    """(a model's weights, the function of a prompt, that of a step), compiled once for both sides of padding."""
    model = mom.with_parameters(config, params)
    backend = "branched" if unstacked else dispatch.resolve(config)
    weights = quick(lambda: model.prepared(backend))()

    @quick
    def prompt(weights, ids, mask):
        positions = jnp.maximum(jnp.cumsum(mask, 1, dtype=jnp.int32) - 1, 0)
        cache = model.init_cache(ROWS, 9)
        output = model(ids, mask=mask, positions=positions, cache=cache, weights=weights)
        return output.logits, output.cache

    @quick
    def step(weights, ids, positions, cache):
        output = model(ids[:, None], positions=positions[:, None], cache=cache, weights=weights)
        return output.logits[:, 0], output.cache

    return weights, prompt, step


def decoded(config, weights, prompt, step, ids, side):
    """The same logits from a prompt padded on either side and three steps; what is padding stays 0."""
    width = max(PROMPTS)
    given, mask = np.zeros((ROWS, width), np.int32), np.zeros((ROWS, width), bool)
    places = [slice(width - n, None) if side == "left" else slice(0, n) for n in PROMPTS]
    for row, (place, n) in enumerate(zip(places, PROMPTS, strict=True)):
        given[row, place], mask[row, place] = ids[row, :n], True
    logits, cache = prompt(weights, given, mask)
    result = np.zeros((ROWS, max(LENGTHS), config.vocab_size), np.float32)
    for row, (place, n) in enumerate(zip(places, PROMPTS, strict=True)):
        result[row, :n] = logits[row, place]
    for i in range(3):
        at = np.array(PROMPTS, np.int32) + i
        logits, cache = step(weights, ids[np.arange(ROWS), at], at, cache)
        result[np.arange(ROWS), at] = logits
    return result


def check(config, *, sides=("left", "right"), unstacked=(True, False), atol=1e-4):
    params = random_params(config)
    ids = np.random.default_rng(5).integers(0, config.vocab_size, (ROWS, max(LENGTHS))).astype(np.int32)
    mask = np.arange(max(LENGTHS))[None] < np.array(LENGTHS)[:, None]
    want, captured = forward(config, params, ids, mask)
    for way in unstacked:
        compiled = programs(config, params, way)
        for side in sides:
            got = decoded(config, *compiled, ids, side)
            np.testing.assert_allclose(got[mask], want[mask], rtol=0, atol=atol, err_msg=f"{side}, unstacked={way}")
    return captured


@pytest.mark.slow
def test_two_chunks_with_anchors_and_skip():
    captured = check(change(ROUTED, top_k=1), unstacked=(True,))
    for side in ("attention", "ffn"):
        assert (np.asarray(captured[f"{side}/index"]) == 3).any()  # SKIP: zero keys are in it


@pytest.mark.parametrize(
    ("fields", "unstacked"),
    [
        ({"attention": ORDERED, "ffn": ORDERED, "tie_embeddings": False}, (True,)),
        pytest.param({"top_k": 1}, (False,), marks=SLOW),
        pytest.param({"top_k": 2}, (True,), marks=SLOW),
        pytest.param({"top_k": 3}, (True,), marks=SLOW),
        pytest.param({"router": {"all_modules": True, "scoring": "raw"}}, (True,), marks=SLOW),
        pytest.param({"weighted_qkv": True, "router": {"straight_through": True}}, (True,), marks=SLOW),
        pytest.param({"num_attn_modules": 1, "num_ffn_modules": 4}, (True,), marks=SLOW),
        pytest.param({"attention": ORDERED, "top_k": 1}, (True,), marks=SLOW),
        (
            {
                "attention": ChoiceConfig("ordered_or_skip", schedule=(1, 0, 1, 2), exit=True),
                "ffn": ChoiceConfig(exit=True),
                "num_steps": 4,
                "top_k": 1,
            },
            (True,),
        ),
        pytest.param(
            {"attention": ChoiceConfig(routes="values"), "module_d_ff": 12, "ffn": ChoiceConfig("ordered_or_skip")}
            | {"num_ffn_modules": 6},
            (True, False),
            marks=SLOW,
        ),
        pytest.param(
            {"attention": ChoiceConfig("ordered", schedule=(1, 0, 1, 2)), "num_steps": 4}, (True, False), marks=SLOW
        ),
        pytest.param(
            {"attention": ChoiceConfig("ordered_or_skip"), "ffn": ChoiceConfig("ordered_or_skip"), "top_k": 1},
            (True,),
            marks=SLOW,
        ),
        pytest.param({"attention": ChoiceConfig(preference=2.0), "router": {"kind": "mlp"}}, (True,), marks=SLOW),
        pytest.param(
            {
                "router": {"kind": "transformer", "heads": 2, "scoring": "sigmoid", "norm": "layer", "step_bias": 1.0},
                "balance": {"bias_rate": 0.1},
            },
            (True,),
            marks=SLOW,
        ),
        pytest.param({"router": {"kind": "gru_random", "classes": "max"}, "num_attn_modules": 2}, (True,), marks=SLOW),
    ],
    ids=lambda fields: " ".join(map(str, fields)),
)
def test_other_models(fields, unstacked):
    check(change(ROUTED, **({"num_chunks": 1, "num_bottom": 0} | fields)), unstacked=unstacked)


@pytest.mark.slow
def test_bfloat16():
    """Rounded alike, but not in the same order."""
    config = change(ROUTED, dtype="bfloat16", num_chunks=1, attention=ORDERED, ffn=ORDERED)
    check(config, atol=0.3)


@pytest.mark.parametrize("tokens", [1, 5, 300])
@pytest.mark.parametrize("top_k", [1, 2])
def test_branched_modules_equal_all_modules(tokens, top_k):
    """Nulls among them, and one that is past the end."""
    rng = np.random.default_rng(tokens)
    modules, width, out = 5, 6, 7
    kernel = jnp.asarray(rng.normal(size=(modules, width, out)), jnp.float32)
    bias = jnp.asarray(rng.normal(size=(modules, out)), jnp.float32)
    x = jnp.asarray(rng.normal(size=(tokens, width)), jnp.float32)
    index = jnp.asarray(rng.permuted(np.tile(np.arange(modules + 2), (tokens, 1)), axis=1)[:, :top_k], jnp.int32)
    weight = jnp.asarray(rng.normal(size=index.shape), jnp.float32)

    def by(backend):
        plan = dispatch.make_plan(index, modules, backend)
        return quick(lambda: dispatch.routed_linear(x, kernel, bias, weight, plan, backend))()

    np.testing.assert_allclose(by("branched"), by("dense"), atol=1e-5)


@pytest.mark.parametrize("index", [5, 6])
def test_nulls_only(index):
    """A single token that chose no module gets zeros."""
    kernel, bias = jnp.ones((5, 6, 7), jnp.float32), jnp.ones((5, 7), jnp.float32)
    for tokens in (1, 4):
        choices = jnp.full((tokens, 2), index, jnp.int32)
        plan = dispatch.make_plan(choices, 5, "branched")
        weight = jnp.ones((tokens, 2), jnp.float32)
        y = dispatch.routed_linear(jnp.ones((tokens, 6), jnp.float32), kernel, bias, weight, plan, "branched")
        np.testing.assert_array_equal(y, np.zeros((tokens, 7)))
