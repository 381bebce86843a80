"""The model against the oracle in tests/reference.py, and what must hold of it whatever it computes."""

import dataclasses
import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from flax import nnx

import mom_jax as mom
from mom_jax import losses
from mom_jax.analysis.cost import parameter_count
from mom_jax.config import BalanceConfig, ChoiceConfig, DropoutConfig, ModelConfig, RouterConfig
from train.step import init_state, language_model_sums, train_step

NEVER = -math.inf
ORDERED = ChoiceConfig(choice="ordered")
OR_SKIP = ChoiceConfig(choice="ordered_or_skip")
GAP = 1e-4  # scores that decide a choice must lie further apart, or rounding decides

SMALL = ModelConfig(
    vocab_size=29,
    context_length=9,
    d_model=16,
    num_heads=2,
    d_ff=24,
    num_bottom=0,
    num_top=0,
    num_attn_modules=3,
    num_ffn_modules=3,
    num_steps=3,
    top_k=2,
    router=RouterConfig(dim=8, temperature=0.7),
    balance=BalanceConfig(weight=0.5),
)


def change(config, **fields):
    """`config` with other fields; a dictionary changes fields of the part of that name."""
    parts = {k: dataclasses.replace(getattr(config, k), **v) for k, v in fields.items() if isinstance(v, dict)}
    return dataclasses.replace(config, **(fields | parts))


def random_params(config, seed=0):
    """Parameters large enough that routing spreads; layer norms are not near the identity."""
    rng = np.random.default_rng(seed)
    shapes = nnx.eval_shape(lambda: mom.MoM(config, rngs=nnx.Rngs(0)))

    def draw(path, leaf):
        name = path[-1].key
        size = 0.5 if name == "score_kernel" else 0.3
        return jnp.asarray(rng.normal(1.0 * (name in ("norm_scale", "scale")), size, leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, mom.parameters(shapes))


def random_ids(batch=2, length=7, seed=0, config=SMALL):
    return jnp.asarray(np.random.default_rng(seed).integers(0, config.vocab_size, (batch, length)), jnp.int32)


def quick(function):
    """Jitted without most of XLA's optimisations, since compiling takes all the time here."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


def run(config, params, ids, **kwargs):
    return mom.with_parameters(config, params)(ids, **kwargs)


def total_loss(config, params, ids, labels=None, **kwargs):
    output = run(config, params, ids, **kwargs)
    nll, count = losses.next_token(output.logits, ids if labels is None else labels)
    return losses.finish(losses.LossSums(nll, count, output.routing), config).total


def assert_close(got, want, atol=1e-5, rtol=1e-5):
    chex.assert_trees_all_close(got, want, atol=atol, rtol=rtol)


# The oracle.


def explicit(*rows):
    return ChoiceConfig(prior=tuple(map(tuple, rows)))


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
    "preference-annealed": {
        "attention": ChoiceConfig(preference=3.0, anneal_steps=10),
        "ffn": ChoiceConfig(preference=-1.0, anneal_steps=20),
        "num_steps": 5,
        "step": 4,
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
    "mask": {"masked": True, "z_loss": 0.1, "balance": {"kind": "depthwise"}},
    "classifier": {"num_classes": 3, "masked": True},
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
gru-k1 gru-raw-straight-through mlp attention-2-ffn-4-max mixture-of-experts ordered-or-skip chunks mask
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
        "mask",
    ),
    1,
)  # the others' is 0


def configuration(name):
    case = CASES[name]
    if isinstance(case, ModelConfig):
        return case
    return change(SMALL, **{field: value for field, value in case.items() if field not in EXTRAS})


def extra(name, field):
    return None if isinstance(CASES[name], ModelConfig) else CASES[name].get(field)


def smallest_gap(config, scores):
    """Between scores [..., C] that decide which classes are chosen and which is the first."""
    decisive = 1 if config.router.all_modules else config.top_k
    ranked = -np.sort(-np.asarray(scores), -1)[..., : decisive + 1]
    upper, lower = ranked[..., :-1], ranked[..., 1:]
    allowed = upper > (0 if config.router.scoring == "softmax" else NEVER)
    return (upper[allowed] - lower[allowed]).min(initial=np.inf)


def assert_same(got, want, name, tolerance=2e-5):
    """Equal up to `tolerance` of the largest entry, or of 1."""
    got, want = np.asarray(got), np.asarray(want)
    atol = tolerance * max(1.0, np.abs(want[np.isfinite(want)]).max(initial=0))
    np.testing.assert_allclose(got, want, rtol=0, atol=atol, err_msg=name)


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
)
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
            sums = losses.next_token(logits, labels)
        result = losses.finish(losses.LossSums(*sums, output.routing), config)
        return result.total, (result, output, logits)

    kwargs = {"mask": mask, "noise": noise, "step": step, "last_index": last_index}
    gradient, (result, output, logits) = quick(jax.grad(ours, has_aux=True))(params)
    want = reference.forward(params, ids, config, **kwargs)
    objective = functools.partial(reference.losses, ids_BxL=ids, labels=labels, config=config, **kwargs)
    want_gradient, parts = jax.grad(lambda p: objective(p), has_aux=True)(params)

    compare_values(config, output.captured, want)
    assert_same(output.hidden, want["hidden_final"], "hidden")
    assert_same(logits, want["logits"], "logits")
    for field, part in (("loss", "loss"), ("balance", "aux_loss"), ("z", "z_loss")):
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
            assert smallest_gap(config, scores) > GAP, "rounding may decide a choice: take another seed"
            assert_same(have["scores"], scores, f"{side} scores {i}")
            if not config.router.all_modules:
                # A forbidden class may have been taken for want of others: it is no class at all in the model.
                forbidden = np.take_along_axis(np.asarray(scores), chosen, -1)
                forbidden = forbidden <= (0 if config.router.scoring == "softmax" else NEVER)
                np.testing.assert_array_equal(have["index"], np.where(forbidden, config.classes(side), chosen))
            if config.router.kind != "mlp":
                state = captured[f"{side}/state"][divmod(i, config.num_steps)]
                assert_same(state, want[f"{short}_gru_state/{i}"], f"{side} state {i}")


# What has no meaning for the oracle, or is compared in tests of its own below.
APART = {"vocab_size", "context_length", "d_model", "dropout", "dtype", "remat", "dispatch"}


def test_the_cases_vary_every_field():
    configs = [configuration(name) for name in CASES]
    for field in dataclasses.fields(ModelConfig):
        values = [getattr(config, field.name) for config in configs]
        if dataclasses.is_dataclass(values[0]) and field.name != "dropout":
            for part in dataclasses.fields(values[0]):
                assert len({getattr(value, part.name) for value in values}) > 1, f"{field.name}.{part.name}"
        elif field.name not in APART:
            assert len(set(values)) > 1, field.name
    routers = {(c.router.kind, c.router.scoring) for c in configs}
    assert len(routers) == 8


@pytest.mark.parametrize("name", CASES)
def test_parameters_are_as_many_as_the_cost_model_says(name):
    config = configuration(name)
    model = nnx.eval_shape(lambda: mom.MoM(config, rngs=nnx.Rngs(0)))
    assert (
        sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(mom.parameters(model))) == parameter_count(config).total
    )


# What a token may see.

ROUTED = change(SMALL, anchor_after_chunk=True, num_steps=2)
TWO_CHUNKS = change(ROUTED, num_chunks=2)


def test_causality_by_gradients():
    """The gradient of each position's output with respect to every position's embedding is lower triangular."""
    params, ids = random_params(ROUTED), random_ids(1)
    direction = jnp.asarray(np.random.default_rng(1).normal(size=ROUTED.d_model), jnp.float32)

    def outputs(positions):
        embed = params["embed"] | {"positions": positions}
        return run(ROUTED, params | {"embed": embed}, ids).hidden[0] @ direction

    jacobian = np.abs(quick(jax.jacrev(outputs))(params["embed"]["positions"])).max(-1)[:, :7]
    assert (jacobian[np.triu_indices(7, 1)] == 0).all()
    assert (jacobian[np.tril_indices(7)] > 1e-6).all()


def test_later_tokens_change_nothing_before_them():
    params, ids = random_params(ROUTED), random_ids()
    logits = quick(lambda ids: run(ROUTED, params, ids).logits)
    before = np.asarray(logits(ids))
    for t in range(1, 7):
        after = np.asarray(logits(ids.at[:, t:].set((ids[:, t:] + 5) % 29)))
        np.testing.assert_array_equal(after[:, :t], before[:, :t])
        assert (np.abs(after[:, t:] - before[:, t:]).max((0, 2)) > 1e-3).all()


def stats(routing):
    return jax.tree.map(np.asarray, routing.sides())


@pytest.mark.parametrize("side", ["left", pytest.param("right", marks=pytest.mark.slow)])
def test_padding_changes_nothing(side):
    config = change(ROUTED, z_loss=0.1)
    params, lengths = random_params(config), (5, 3)
    documents = [random_ids(1, n, seed=n) for n in lengths]
    alone = [quick(lambda ids: run(config, params, ids))(ids) for ids in documents]
    ids, mask = np.full((2, 7), 17, np.int32), np.zeros((2, 7), np.int32)
    for row, document in enumerate(documents):
        n = document.shape[1]
        at = slice(0, n) if side == "right" else slice(7 - n, 7)
        ids[row, at], mask[row, at] = document[0], 1
    positions = jnp.asarray(np.maximum(np.cumsum(mask, 1) - 1, 0))
    padded = quick(lambda ids, mask: run(config, params, ids, mask=mask, positions=positions))(ids, jnp.asarray(mask))
    for row, output in enumerate(alone):
        assert_close(padded.hidden[row][mask[row] == 1], output.hidden[0])
    want = jax.tree.map(lambda a, b: a + b, stats(alone[0].routing), stats(alone[1].routing))
    assert_close(stats(padded.routing), want, atol=1e-4)
    np.testing.assert_array_equal(padded.routing.ffn.tokens, sum(lengths))
    chex.assert_tree_all_finite(padded.hidden)


def test_packed_documents_are_as_if_alone():
    params = random_params(ROUTED)
    first, second = random_ids(1, 4, seed=1), random_ids(1, 3, seed=2)
    packed = quick(lambda ids, **kwargs: run(ROUTED, params, ids, **kwargs))(
        jnp.concatenate([first, second], 1),
        positions=jnp.array([[0, 1, 2, 3, 0, 1, 2]]),
        segment_ids=jnp.array([[1, 1, 1, 1, 2, 2, 2]]),
    )
    alone = quick(lambda ids: run(ROUTED, params, ids))
    assert_close(packed.hidden[:, :4], alone(first).hidden)
    assert_close(packed.hidden[:, 4:], alone(second).hidden)


# The key and value cache.


@pytest.mark.parametrize(
    "fields",
    [
        {"top_k": 1},
        pytest.param({"top_k": 2, "router": {"kind": "mlp"}}, marks=pytest.mark.slow),
        pytest.param({"top_k": 3, "weighted_qkv": True, "num_top": 1}, marks=pytest.mark.slow),
        pytest.param({"attention": ORDERED, "num_steps": 3}, marks=pytest.mark.slow),
        pytest.param({"num_attn_modules": 1, "top_k": 3}, marks=pytest.mark.slow),
    ],
    ids=lambda fields: " ".join(map(str, fields)),
)
def test_decoding_with_a_cache_equals_the_whole_pass(fields):
    """Three tokens at once, the others one by one; the first row is padded on the left."""
    config = change(TWO_CHUNKS if fields.get("top_k") == 1 else ROUTED, num_bottom=1, **fields)
    params, ids = random_params(config), random_ids()
    mask = jnp.asarray(np.arange(7)[None] >= np.array([[2], [0]]))
    positions = jnp.maximum(jnp.cumsum(mask, 1) - 1, 0)
    whole = quick(lambda: run(config, params, ids, mask=mask, positions=positions, capture=("routing",)))()
    if "ffn/index" in whole.captured:
        assert (np.asarray(whole.captured["ffn/index"]) == config.classes("ffn") - 1).any()  # SKIP is in it
    model = mom.with_parameters(config, params)

    @quick
    def following(cache, ids, mask, positions):
        output = model(ids, mask=mask, positions=positions, cache=cache)
        return output.cache, output.logits

    cache, parts = model.init_cache(2, 9), []
    for at in (slice(0, 3), *(slice(t, t + 1) for t in range(3, 7))):
        cache, logits = following(cache, ids[:, at], mask[:, at], positions[:, at])
        parts.append(logits)
    assert int(cache.length) == 7
    got, want = np.concatenate(parts, 1), np.asarray(whole.logits)
    assert_close(got[np.asarray(mask)], want[np.asarray(mask)], atol=5e-5)


def test_positions_count_on_from_the_cache():
    config = change(SMALL, num_chunks=0, num_bottom=1)
    params, ids = random_params(config), random_ids()
    model = mom.with_parameters(config, params)
    start = model(ids[:, :4], cache=model.init_cache(2, 7))
    assert_close(model(ids[:, 4:], cache=start.cache).hidden, model(ids).hidden[:, 4:])


# Other ways to compute the same.


def test_the_order_of_the_modules_means_nothing():
    """Modules permuted together with their columns of the router's scores: the same, and gradients permuted alike."""
    config = change(SMALL, z_loss=0.1, num_steps=2)
    params, ids = random_params(config), random_ids()
    order = {"attention": np.array([2, 0, 1]), "ffn": np.array([1, 2, 0])}

    def permuted(params):
        chunk = dict(params["chunks"][0])
        for side, modules in order.items():
            columns = np.append(modules, 3)  # SKIP stays the last
            chunk[side] = jax.tree.map(lambda a, m=modules: a[m], chunk[side])
            router = dict(chunk[f"{side}_router"])
            chunk[f"{side}_router"] = router | {
                "score_kernel": router["score_kernel"][:, columns],
                "score_bias": router["score_bias"][columns],
            }
        return params | {"chunks": {0: chunk}}

    objective = quick(jax.value_and_grad(lambda params: total_loss(config, params, ids)))
    value, gradient = objective(params)
    other_value, other_gradient = objective(permuted(params))
    assert_close(other_value, value)
    assert_close(other_gradient, permuted(gradient))
    # It is a real permutation: of the scores alone it would be another model.
    alone = permuted(params)["chunks"][0] | {"ffn": params["chunks"][0]["ffn"]}
    assert abs(objective(params | {"chunks": {0: alone}})[0] - value) > 1e-3


@pytest.mark.parametrize("remat", ["full", pytest.param("dots", marks=pytest.mark.slow)])
def test_recomputation_changes_nothing(remat):
    config = change(SMALL, num_steps=2)
    params, ids = random_params(config), random_ids()

    def value_and_gradient(remat):
        function = jax.value_and_grad(functools.partial(total_loss, change(config, remat=remat), ids=ids))
        assert ("remat" in str(jax.make_jaxpr(function)(params))) == (remat != "none")
        return quick(function)(params)

    assert_close(value_and_gradient(remat), value_and_gradient("none"), atol=1e-6)


@pytest.mark.parametrize("accumulation", [4, pytest.param(2, marks=pytest.mark.slow)])
def test_accumulated_steps_are_the_whole_batchs(accumulation):
    """With losses that do not average: a heavy balance loss, and micro-batches with different numbers of tokens."""
    config = change(SMALL, balance={"weight": 5.0}, z_loss=0.3, num_steps=2)
    params, ids = random_params(config), random_ids(4)
    mask = jnp.asarray(np.arange(7)[None] < np.array([[7], [6], [3], [2]]))
    batch, optimizer = {"tokens": ids, "mask": mask}, optax.sgd(1.0)

    def stepped(accumulation):
        step = functools.partial(train_step, config=config, optimizer=optimizer, accumulation=accumulation, seed=0)
        state, report = quick(step)(init_state(params, optimizer), batch)
        assert int(state.step) == 1
        return state.params, report

    (whole, report), (accumulated, same_report) = stepped(1), stepped(accumulation)
    # SGD with a rate of 1: the change is the gradient.
    assert_close(accumulated, whole, atol=2e-5)
    assert_close(same_report, report, atol=2e-5)
    change_norm = jnp.sqrt(
        sum(jnp.square(a - b).sum() for a, b in zip(*map(jax.tree.leaves, (whole, params)), strict=True))
    )
    np.testing.assert_allclose(change_norm, report.grad_norm, rtol=1e-4)

    # The mean over micro-batches would be something else.
    def loss_of(rows):
        part = {name: array[rows] for name, array in batch.items()}
        return losses.finish(language_model_sums(params, part, config), config).total

    assert abs((loss_of(slice(0, 2)) + loss_of(slice(2, 4))) / 2 - report.losses.total) > 1e-2


# Random numbers.


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


@pytest.mark.parametrize("all_modules", [pytest.param(False, marks=pytest.mark.slow), True])
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


# Complaints.


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
