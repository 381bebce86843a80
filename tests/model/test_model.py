"""What must hold of the model whatever it computes: what a token sees, the cache, invariances."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small import ORDERED, SMALL, assert_close, change, quick, random_ids, random_params, run, total_loss

import mom_jax as mom
from mom_jax import losses
from mom_jax.analysis import hlo
from mom_jax.sharding import make_mesh
from train.steps.state import init_state
from train.steps.sums import language_model_sums
from train.steps.train_step import train_step

# What a token may see.

ROUTED = change(SMALL, anchor_after_chunk=True, num_steps=2)


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
        pytest.param({"top_k": 1, "num_chunks": 2}, marks=pytest.mark.slow),
        pytest.param({"top_k": 2, "router": {"kind": "mlp"}}, marks=pytest.mark.slow),
        pytest.param({"top_k": 3, "weighted_qkv": True, "num_top": 1}, marks=pytest.mark.slow),
        pytest.param({"attention": ORDERED, "num_steps": 3}, marks=pytest.mark.slow),
        pytest.param({"num_attn_modules": 1, "top_k": 3}, marks=pytest.mark.slow),
    ],
    ids=lambda fields: " ".join(map(str, fields)),
)
def test_decoding_with_a_cache_equals_the_whole_pass(fields):
    """Three tokens at once, the others one by one; the first row is padded on the left."""
    config = change(ROUTED, num_bottom=1, **fields)
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

    @quick
    def hidden(ids):
        start = model(ids[:, :4], cache=model.init_cache(2, 7))
        return model(ids[:, 4:], cache=start.cache).hidden, model(ids).hidden

    following, whole = hidden(ids)
    assert_close(following, whole[:, 4:])


# Other ways to compute the same.


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["full", "dots"])
def test_recomputation_changes_nothing(remat):
    config = change(SMALL, num_steps=2)
    params, ids = random_params(config), random_ids()

    def value_and_gradient(remat):
        function = jax.value_and_grad(functools.partial(total_loss, change(config, remat=remat), ids=ids))
        assert ("remat" in str(jax.make_jaxpr(function)(params))) == (remat != "none")
        return quick(function)(params)

    assert_close(value_and_gradient(remat), value_and_gradient("none"), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("accumulation", [2, 4])
def test_accumulated_steps_are_the_whole_batchs(accumulation):
    """With losses that do not average: a heavy balance loss, and micro-batches with different numbers of tokens."""
    config = change(SMALL, balance={"weight": 5.0}, z_loss=0.3, num_steps=2)
    params, ids = random_params(config), random_ids(4)
    mask = jnp.asarray(np.arange(7)[None] < np.array([[7], [6], [3], [2]]))
    batch, optimizer = {"tokens": ids, "mask": mask}, optax.sgd(1.0)

    def stepped(accumulation):
        settings = {"accumulation": accumulation, "seed": 0, "mesh": make_mesh()}
        step = functools.partial(train_step, config=config, optimizer=optimizer, **settings)
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
    for side in ("attention", "ffn"):
        new, old = (jax.tree.leaves(params["chunks"][0][f"{side}_router"]) for params in (whole, params))
        changes = np.concatenate([np.ravel(a - b) for a, b in zip(new, old, strict=True)])
        np.testing.assert_allclose(report.router_norms[side], np.linalg.norm(changes), rtol=1e-4)
        np.testing.assert_allclose(report.router_updates[side], np.sqrt(np.mean(changes**2)), rtol=1e-4)

    # The mean over micro-batches would be something else.
    loss = quick(lambda part: losses.finish(language_model_sums(params, part, config), config).total)
    parts = [loss({name: array[rows] for name, array in batch.items()}) for rows in (slice(0, 2), slice(2, 4))]
    assert abs(sum(parts) / 2 - report.losses.total) > 1e-2


@pytest.mark.slow
def test_micro_batches_that_are_balanced_by_themselves():
    config = change(SMALL, balance={"weight": 5.0, "over": "micro_batch"}, z_loss=0.3, num_steps=2)
    params, ids = random_params(config), random_ids(4)
    mask = jnp.asarray(np.arange(7)[None] < np.array([[7], [6], [3], [2]]))
    batch, optimizer = {"tokens": ids, "mask": mask}, optax.sgd(1.0)
    settings = {"config": config, "optimizer": optimizer, "accumulation": 2, "seed": 0, "mesh": make_mesh()}
    state, report = quick(functools.partial(train_step, **settings))(init_state(params, optimizer), batch)

    def plain(params):
        parts = [{name: array[rows] for name, array in batch.items()} for rows in (slice(0, 2), slice(2, 4))]
        sums = [language_model_sums(params, part, config) for part in parts]
        finished = [losses.finish(part, config) for part in sums]
        routers = sum(5.0 * own.balance + 0.3 * own.z for own in finished) / 2
        return sum(part.nll for part in sums) / sum(part.count for part in sums) + routers

    loss, gradient = quick(jax.value_and_grad(plain))(params)
    assert_close(jax.tree.map(lambda a, b: a - b, params, state.params), gradient, atol=2e-5)
    assert_close(report.losses.total, loss, atol=2e-5)
    parts = report.losses
    assert_close(parts.loss + 5.0 * parts.balance + 0.3 * parts.z, loss, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("over", "least", "most"), [("batch", 1.25, 1.4), ("micro_batch", 0.99, 1.05)])
def test_products_of_micro_batches(over, least, most):
    """f of the whole batch takes a forward pass of its own, f of a micro-batch none."""
    config = change(SMALL, balance={"over": over}, remat="none", dispatch="dense", attention_kernel="plain")
    # So many tokens that no rows fill up a tile.
    batch, optimizer = {"tokens": random_ids(64, 8)}, optax.sgd(1.0)
    state = init_state(random_params(config), optimizer)

    def flops(accumulation):
        settings = {"accumulation": accumulation, "seed": 0, "mesh": make_mesh()}
        step = functools.partial(train_step, config=config, optimizer=optimizer, **settings)
        return hlo.count(jax.jit(step).lower(state, batch).compile().as_text()).flops

    assert least <= flops(2) / flops(1) <= most
