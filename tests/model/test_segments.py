"""Documents that share a window: computed as if each were alone, in values, routing, losses and gradients."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small import SMALL, assert_close, change, quick, random_params, run
from test_model_oracle import GAP, smallest_gap

from mom_jax.evaluation import counted
from mom_jax.losses import IGNORE, LossSums, finish
from mom_jax.sharding import make_mesh
from train.config import DataConfig
from train.data.packing import pack
from train.steps.compiled import abstract_batch
from train.steps.evaluation_step import evaluation_step
from train.steps.state import init_state
from train.steps.sums import language_model_sums
from train.steps.train_step import train_step

SETTINGS = {"context_length": 128, "num_bottom": 0, "num_steps": 2, "z_loss": 0.1}
K1, K3 = change(SMALL, top_k=1, num_top=1, **SETTINGS), change(SMALL, top_k=3, anchor_after_chunk=True, **SETTINGS)
MODELS = {
    "k1": K1,
    "k1-weighted": change(K1, weighted_qkv=True),
    "k3": K3,
    "k3-weighted": change(K3, weighted_qkv=True),
    "k3-deep": change(K3, num_chunks=2, num_bottom=1, num_top=1, weighted_qkv=True),
    "vanilla": change(K1, num_bottom=1).vanilla(),
}
# A window's length, and documents that do not quite fill two windows, or one. Every other length is compiled anew.
SHORT = (20, (7, 4, 7, 1, 4, 7, 4))
PAIRS = (20, (7, 7, 4, 7, 4, 4))
LONG = (128, (70, 30, 20))


def packed(length, lengths, vocabulary=SMALL.vocab_size):
    """(a batch of all windows of random documents, {n: the documents of n tokens}).

    The latter as (ids [k, n], and where they are in the batch: rows [k, 1], places [k, n]).
    """
    starts = np.concatenate([[0], np.cumsum(lengths)])
    tokens = np.random.default_rng(0).integers(1, vocabulary, starts[-1]).astype(np.uint16)
    packing = pack(starts, length)
    windows = [packing.window(i, tokens) for i in range(packing.num_windows)]
    batch = {name: np.stack([window[name] for window in windows]) for name in windows[0]}
    places = {}
    for row in range(packing.num_windows):
        at = 0
        for piece in range(packing.window_first[row], packing.window_first[row + 1]):
            places.setdefault(int(packing.piece_length[piece]), []).append((int(packing.piece_start[piece]), row, at))
            at += packing.piece_length[piece]
    documents = {}
    for n, found in places.items():
        start, row, at = (np.array(column)[:, None] for column in zip(*found, strict=True))
        documents[n] = tokens[start + np.arange(n)].astype(np.int32), row, at + np.arange(n)
    return batch, documents


def test_the_examples_have_several_documents_in_a_window_and_padding():
    for example in (SHORT, PAIRS, LONG):
        batch, documents = packed(*example)
        segments = batch["segment_ids"]
        assert len(segments) == (1 if example is LONG else 2)
        assert (segments.max(1) > 1).all()
        assert (segments[:, -1] == 0).all()
        for ids, rows, places in documents.values():
            np.testing.assert_array_equal(batch["tokens"][rows, places], ids)
        assert sum(ids.size for ids, _, _ in documents.values()) == sum(example[1])


@functools.partial(jax.jit, static_argnames="config", compiler_options={"xla_backend_optimization_level": 0})
def outputs(params, batch, *, config):
    """Logits [B, L, V], and what routing was [S, H, B, L, ...]."""
    kwargs = {name: value for name, value in batch.items() if name != "tokens"}
    mask, _ = counted(batch)
    output = run(config, params, batch["tokens"], mask=mask, capture=("routing",), **kwargs)
    return {"logits": output.logits} | output.captured


@pytest.mark.parametrize(
    ("name", "kernel", "example"),
    [
        ("k3-weighted", "plain", SHORT),
        ("vanilla", "blocked", SHORT),
        ("k1", "splash", LONG),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [
                ("k1", "blocked", SHORT),
                ("k1-weighted", "plain", SHORT),
                ("k3", "blocked", LONG),
                ("k3-weighted", "splash", LONG),
                ("vanilla", "splash", LONG),
            ]
        ),
    ],
)
def test_a_packed_document_is_computed_as_if_alone(name, kernel, example):
    config = change(MODELS[name], attention_kernel=kernel)
    batch, documents = packed(*example)
    params = random_params(config)
    got = jax.device_get(outputs(params, batch, config=config))
    for ids, rows, places in documents.values():
        want = jax.device_get(outputs(params, {"tokens": ids}, config=change(config, attention_kernel="plain")))
        assert got.keys() == want.keys()
        for field, theirs in want.items():
            ours = got[field][..., rows, places, :]
            if field.endswith("index"):
                np.testing.assert_array_equal(ours, theirs)
            else:
                assert_close(ours, theirs)
            if field.endswith("scores"):
                gap = smallest_gap(config, field.split("/")[0], theirs)
                assert gap > GAP, "rounding may decide a choice: take another seed"
    if config.top_k == 3:
        assert (got["ffn/index"] == config.classes("ffn") - 1).any()  # SKIP is in it


@pytest.mark.parametrize("absent", ["segment_ids", "positions"])
def test_without_segments_or_positions_it_is_another_result(absent):
    config = change(MODELS["k1"], attention_kernel="blocked")
    batch, _ = packed(*SHORT)
    params = random_params(config)
    right = outputs(params, batch, config=config)["logits"]
    wrong = outputs(params, {name: x for name, x in batch.items() if name != absent}, config=config)["logits"]
    differs = (np.abs(right - wrong) > 1e-2).any(-1)
    later, first = batch["segment_ids"] > 1, batch["segment_ids"] == 1
    assert differs[later].mean() > 0.9
    assert not differs[first].any()


# Losses.


@pytest.mark.parametrize(
    ("name", "kernel", "example"),
    [
        pytest.param("k3-weighted", "blocked", PAIRS, marks=pytest.mark.slow),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [
                ("k1-weighted", "splash", LONG),
            ]
        ),
    ],
)
def test_sums_and_gradients_are_those_of_the_documents_alone(name, kernel, example):
    config = change(MODELS[name], attention_kernel=kernel)
    batch, documents = packed(*example)
    params = random_params(config)

    def together(params):
        sums = language_model_sums(params, batch, config)
        return finish(sums, config).total, sums

    def apart(params):
        plain = change(config, attention_kernel="plain")
        parts = [language_model_sums(params, {"tokens": jnp.asarray(ids)}, plain) for ids, _, _ in documents.values()]
        sums = jax.tree.map(lambda *leaves: sum(leaves[1:], start=leaves[0]), *parts)
        return finish(sums, config).total, sums

    gradient, sums = quick(jax.grad(together, has_aux=True))(params)
    want_gradient, want = quick(jax.grad(apart, has_aux=True))(params)
    assert sums.count == sum(n - 1 for n in example[1])
    for stats in sums.routing.sides().values():
        assert (stats.tokens == sum(example[1])).all()
    assert_close(sums, want)
    assert_close(gradient, want_gradient)


X = IGNORE


@pytest.mark.parametrize(
    ("batch", "real", "labels"),
    [
        ({}, None, [5, 6, 7, 8, 9, 4]),
        ({"labels": [1, 2, 3, 1, 2, 3]}, None, [1, 2, 3, 1, 2, 3]),
        ({"mask": [1, 1, 1, 1, 0, 0]}, [1, 1, 1, 1, 0, 0], [X, 6, 7, 8, X, X]),
        ({"mask": [0, 0, 1, 1, 1, 1]}, [0, 0, 1, 1, 1, 1], [X, X, X, 8, 9, 4]),
        ({"segment_ids": [1, 1, 2, 3, 3, 3]}, [1] * 6, [X, 6, X, X, 9, 4]),
        ({"segment_ids": [1, 1, 2, 2, 2, 0]}, [1, 1, 1, 1, 1, 0], [X, 6, X, 8, 9, X]),
        ({"segment_ids": [1, 1, 2, 2, 2, 0], "mask": [1, 1, 1, 1, 0, 1]}, [1, 1, 1, 1, 0, 0], [X, 6, X, 8, X, X]),
        ({"segment_ids": [1, 1, 1, 2, 2, 2], "labels": [1, X, 3, 1, 2, 3]}, [1] * 6, [X, X, 3, X, 2, 3]),
    ],
)
def test_what_counts(batch, real, labels):
    """Label 0 is never predicted, whatever it is."""
    rows = {name: jnp.array([row], jnp.int32) for name, row in batch.items()}
    got_real, got = counted({"tokens": jnp.array([[5, 6, 7, 8, 9, 4]], jnp.int32)} | rows)
    np.testing.assert_array_equal(got, [labels])
    assert (got_real is None) == (real is None)
    if real is not None:
        np.testing.assert_array_equal(got_real, np.array([real], bool))


# Steps.


def test_what_is_compiled_ahead_is_what_packed_windows_are():
    data, (batch, _) = DataConfig(batch_size=2, length=SHORT[0]), packed(*SHORT)
    documents = abstract_batch(dataclasses.replace(data, packing="documents"), make_mesh())
    assert {name: (x.shape, x.dtype) for name, x in documents.items()} == {
        name: (x.shape, x.dtype) for name, x in batch.items()
    }
    assert abstract_batch(data, make_mesh()) == {"tokens": documents["tokens"]}


def test_evaluation_and_exchange_leave_padding_out():
    config = change(MODELS["k1"], num_top=0)
    batch, _ = packed(*SHORT)
    params = random_params(config)
    at = {"config": config, "mesh": make_mesh()}
    sums = evaluation_step(params, batch, jnp.int32(0), **at)
    dealt = evaluation_step(params, batch, jnp.int32(0), jax.random.key(0), **at)
    assert isinstance(sums, LossSums)
    assert sums.count == dealt.count == sum(n - 1 for n in SHORT[1])
    assert abs(sums.nll - dealt.nll) > 1
    # The first step's choices are dealt among the real tokens: as many of each class as before.
    np.testing.assert_array_equal(sums.routing.attention.choices_C[0, 0], dealt.routing.attention.choices_C[0, 0])


@pytest.mark.parametrize("name", ["vanilla", pytest.param("k1", marks=pytest.mark.slow)])
def test_an_accumulated_step_on_packed_windows_is_the_whole_batchs(name):
    config = change(MODELS[name], balance={"weight": 5.0})
    batch, _ = packed(*SHORT)
    params, optimizer = random_params(config), optax.sgd(1.0)

    def stepped(accumulation):
        settings = {"accumulation": accumulation, "seed": 0, "mesh": make_mesh()}
        step = functools.partial(train_step, config=config, optimizer=optimizer, **settings)
        state, report = quick(step)(init_state(params, optimizer), batch)
        return state.params, report

    (whole, report), (accumulated, same_report) = stepped(1), stepped(2)
    assert_close(accumulated, whole, atol=2e-5)
    assert_close(same_report, report, atol=2e-5)
    assert report.count == sum(n - 1 for n in SHORT[1])


def test_padding_takes_no_room_from_tokens():
    """Every module has room for all real tokens; padding comes first, would choose the same modules, and is more."""
    config = change(K1, capacity_factor=SMALL.num_ffn_modules / 4, num_bottom=0)
    rows = np.random.default_rng(0).integers(1, SMALL.vocab_size, (1, 12))
    batch = {"tokens": np.concatenate([np.repeat(rows, 3, 0), rows]), "mask": np.arange(4)[:, None] == [[3] * 12]}
    params = random_params(config)
    sums_of = quick(lambda batch: language_model_sums(params, batch, config))
    unlimited = change(config, capacity_factor=None)
    sums, alone = sums_of(batch), quick(lambda: language_model_sums(params, {"tokens": rows}, unlimited))()
    assert_close(sums.nll, alone.nll)
    for side in sums.routing.sides().values():
        assert float(side.dropped.sum()) == 0
    without = sums_of({"tokens": batch["tokens"]})
    assert sum(float(side.dropped.sum()) for side in without.routing.sides().values()) > 0
