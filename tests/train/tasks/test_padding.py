"""Rows of tokens: how texts are joined and padded, and that padding is nobody's business."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small

from mom_jax.losses import finish
from mom_jax.sharding import make_mesh
from train.steps.state import init_state
from train.steps.sums import classification_sums, head_outputs
from train.steps.train_step import train_step
from train.tasks.batches import Example, bucket, by_length, make_batch, training_batches
from train.tasks.finetune import linear_schedule, predict, with_head
from train.tasks.glue.examples import join
from train.tasks.settings import FineTuneConfig

CLASSES = small.change(small.SMALL, context_length=64, num_classes=3, z_loss=0.1)


def ids(*lengths):
    rng = np.random.default_rng(0)
    return [rng.integers(1, CLASSES.vocab_size, length).astype(np.int32) for length in lengths]


def sums(params, batch):
    found = classification_sums(params, batch, CLASSES)
    return found, finish(found, CLASSES)


@pytest.fixture(scope="module")
def padded():
    """By name the loss sums and losses of the same rows, padded to several lengths and with empty rows."""
    params = small.random_params(CLASSES)
    examples = [Example(tokens, label) for tokens, label in zip(ids(5, 32, 11), (0, 2, 1), strict=True)]
    compiled = small.quick(sums)
    tight = make_batch(examples, 3, 64)
    wide = {name: np.pad(x, ((0, 2), (0, 16))) if x.ndim == 2 else np.pad(x, (0, 2)) for name, x in tight.items()}
    # What stands in the padding must not matter either.
    other = wide | {"tokens": np.where(wide["mask"], wide["tokens"], 7)}
    return {name: compiled(params, batch) for name, batch in (("tight", tight), ("wide", wide), ("other", other))}


@pytest.mark.slow
def test_pads_reach_neither_the_losses_nor_the_routers(padded):
    tokens = 5 + 32 + 11
    for name in ("wide", "other"):
        small.assert_close(padded[name], padded["tight"])
    found, losses = padded["wide"]
    assert float(found.count) == 3
    assert float(losses.balance) > 0
    assert float(losses.z) > 0
    assert float(losses.total) == pytest.approx(
        float(losses.loss + CLASSES.balance.weight * losses.balance + 0.1 * losses.z)
    )
    for stats in found.routing.sides().values():
        np.testing.assert_allclose(stats.tokens, tokens)
        np.testing.assert_allclose(stats.choices_C.sum(-1), tokens * CLASSES.top_k)
        np.testing.assert_allclose(stats.probability_C.sum(-1), tokens, rtol=1e-5)


def head_and_sums(config):
    return small.quick(
        lambda params, batch: (head_outputs(params, batch, config)[0], classification_sums(params, batch, config))
    )


def test_the_loss_is_of_the_last_real_token():
    anchor = small.change(CLASSES, num_chunks=0, num_bottom=1)  # routing has no part in it
    params = small.random_params(anchor)
    rows, labels = ids(5, 9), (2, 0)
    last = small.quick(lambda params, ids: small.run(anchor, params, ids).hidden[0, -1])
    hidden = [last(params, jnp.asarray(tokens)[None]) for tokens in rows]
    logits = jnp.stack(hidden) @ params["head"]["kernel"]
    total = -sum(float(jax.nn.log_softmax(own)[label]) for own, label in zip(logits, labels, strict=True))
    batch = make_batch([Example(*pair) for pair in zip(rows, labels, strict=True)], 3, 16)
    outputs, found = head_and_sums(anchor)(params, batch)
    small.assert_close(outputs[:2], logits, atol=1e-4)
    assert (float(found.nll), float(found.count)) == (pytest.approx(total, rel=1e-4), 2)
    # The same rows with a number to predict.
    config, params = with_head(anchor, params, 1, seed=3)
    [[first], [second]] = (jnp.stack(hidden) @ params["head"]["kernel"]).tolist()
    _, found = head_and_sums(config)(params, make_batch([Example(rows[0], 2.5), Example(rows[1], 0.5)], 3, 16))
    assert float(found.nll) == pytest.approx((first - 2.5) ** 2 + (second - 0.5) ** 2, rel=1e-4)
    assert float(found.count) == 2


@pytest.mark.slow
def test_empty_rows_and_micro_batches_change_nothing():
    optimizer, config = optax.sgd(1.0), dataclasses.replace(CLASSES, dispatch="dense")
    params = small.random_params(config)
    examples = [Example(tokens, label) for tokens, label in zip(ids(5, 9), (0, 2), strict=True)]

    def after(rows, accumulation):
        bound = {"config": config, "optimizer": optimizer, "accumulation": accumulation, "mesh": make_mesh()}
        step = small.quick(functools.partial(train_step, seed=0, **bound))
        return step(init_state(params, optimizer), make_batch(examples, rows, 16))[0].params

    whole = after(2, 1)
    small.assert_close(after(3, 3), whole, atol=1e-4, rtol=1e-4)  # one row each, the last one empty
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), params, whole)
    assert [name for name, value in jax.tree_util.tree_leaves_with_path(moved) if not value] == []


def test_a_capacity_changes_no_prediction():
    """What a model says of an example does not depend on the examples beside it."""
    config = small.change(CLASSES, capacity_factor=0.5)
    params, examples = small.random_params(config), [Example(tokens) for tokens in ids(5, 9, 3, 7)]

    def outputs(*some):
        return predict(config, params, some, FineTuneConfig(batch_size=4), make_mesh())

    np.testing.assert_allclose(outputs(*examples)[-1:], outputs(examples[-1]), atol=1e-5)


def test_lengths_are_few():
    assert [bucket(length, 100) for length in (1, 32, 33, 64, 65, 100)] == [32, 32, 64, 64, 100, 100]
    assert bucket(5, 16) == 16


def test_every_example_is_seen_once_an_epoch():
    examples = [Example(np.full(n + 1, n, np.int32), n) for n in range(7)]
    orders = []
    for seed in (0, 0, 1):
        batches = list(training_batches(examples, 3, 32, 2, seed))
        assert [batch["tokens"].shape for batch in batches] == [(3, 32)] * 6
        seen = [batch["classes"][batch["mask"].any(1)].tolist() for batch in batches]
        assert [len(some) for some in seen] == [3, 3, 1] * 2
        epochs = [n for some in seen[:3] for n in some], [n for some in seen[3:] for n in some]
        assert [sorted(epoch) for epoch in epochs] == [list(range(7))] * 2
        assert epochs[0] != epochs[1]
        orders.append(epochs)
    assert orders[0] == orders[1] != orders[2]
    assert [some.tolist() for some in by_length([5, 1, 4, 1, 9], 2)] == [[1, 3], [2, 0], [4]]


@pytest.mark.parametrize(
    ("first", "second", "kept"), [(3, 4, (3, 4)), (20, 3, (6, 3)), (3, 20, (3, 6)), (20, 20, (5, 4)), (5, 20, (5, 4))]
)
def test_the_longer_text_loses_its_end(first, second, kept):
    a, b = np.arange(first, dtype=np.int32), 100 + np.arange(second, dtype=np.int32)
    assert join((a, b), [50], 10).tolist() == [*a[: kept[0]], 50, *b[: kept[1]]]


def test_texts_without_tokens():
    none = np.zeros(0, np.int32)
    assert join((none,), [50], 10).tolist() == join((none, none), [50], 10).tolist() == [50]


def test_the_learning_rate():
    rates = [float(linear_schedule(2.0, 4, 10)(jnp.asarray(step))) for step in range(10)]
    np.testing.assert_allclose(rates, [0.5, 1, 1.5, 2, 2, 10 / 6, 8 / 6, 1, 4 / 6, 2 / 6], rtol=1e-6)
    assert float(linear_schedule(2.0, 0, 4)(jnp.asarray(0))) == 2
