"""Validation losses against a plain sum over windows, and what the exchange test measures."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx

from mom_jax.model import MoM, parameters, with_parameters
from mom_jax.routers import Selection
from mom_jax.routing import exchange
from train.data.prepared import prepare
from train.training.validation import exchange_test, validate


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    config = tiny.config(tmp_path_factory.mktemp("evaluation"))
    params = jax.jit(lambda: parameters(MoM(config.model, rngs=nnx.Rngs(0))))()
    # Strong routers and modules: the choices differ between tokens, and matter.
    for side in ("attention_router", "ffn_router"):
        params["chunks"][0][side]["score_kernel"] *= 100
    for side in ("attention", "ffn"):
        params["chunks"][0][side]["out_kernel"] *= 30
    return config, params, prepare(config.data)


def test_the_loss_is_the_mean_over_all_predicted_tokens(setting):
    config, params, prepared = setting
    [cache], length = prepared.validation, config.data.length
    windows = np.asarray(cache.tokens[: cache.num_tokens // length * length]).reshape(-1, length).astype(np.int32)
    model = with_parameters(config.model, params)
    logits = np.asarray(jax.jit(lambda: model(jnp.asarray(windows)).logits)(), np.float64)[:, :-1]
    labels = windows[:, 1:]
    nll = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, labels[..., None], -1)[..., 0]
    evaluation = validate(params, config.model, prepared, config.data, step=0, limit=0)
    assert evaluation.loss == pytest.approx(nll.mean(), abs=1e-5)
    assert evaluation.tokens == labels.size
    assert labels.shape[0] % config.data.batch_size != 0  # the last batch has rows that do not count
    assert evaluation.perplexity == pytest.approx(np.exp(nll.mean()), rel=1e-5)


def test_dropout_is_off(setting):
    config, params, prepared = setting
    dropout = dataclasses.replace(config.model.dropout, embedding=0.5, attention=0.5, residual=0.5)
    wet = dataclasses.replace(config.model, dropout=dropout)
    losses = [validate(params, model, prepared, config.data, step=0, limit=2).loss for model in (config.model, wet)]
    assert losses[0] == losses[1]


def test_annealed_preferences_have_the_strength_of_the_step(setting):
    config, params, prepared = setting
    choice = dataclasses.replace(config.model.ffn, preference=5.0, anneal_steps=10)
    model = dataclasses.replace(config.model, ffn=choice)
    at = {step: validate(params, model, prepared, config.data, step=step, limit=2).loss for step in (0, 10)}
    assert at[0] != at[10]
    assert at[10] == validate(params, config.model, prepared, config.data, step=0, limit=2).loss


def test_exchanging_choices_that_differ_changes_the_loss(setting):
    config, params, prepared = setting
    losses = exchange_test(params, config.model, prepared, config.data, step=0, batches=2)
    assert len(losses["normal"]) == len(losses["exchanged"]) == 3
    assert all(abs(a - b) > 1e-4 for a, b in zip(losses["normal"], losses["exchanged"], strict=True))


def test_exchanging_equal_choices_changes_nothing(setting):
    config, params, prepared = setting
    alike = jax.tree.map(lambda x: x, params)
    for side in ("attention_router", "ffn_router"):
        router = alike["chunks"][0][side]
        router["score_kernel"] = jnp.zeros_like(router["score_kernel"])
        router["score_bias"] = jnp.arange(router["score_bias"].size, dtype=jnp.float32)
    losses = exchange_test(alike, config.model, prepared, config.data, step=0, batches=2)
    np.testing.assert_allclose(losses["normal"], losses["exchanged"], atol=1e-6)


def test_padding_takes_no_part_in_the_exchange():
    valid = jnp.array([True, False, True, True, False, True])
    index = jnp.arange(6, dtype=jnp.int32)[:, None]
    orders = set()
    for seed in range(20):
        dealt = exchange(Selection(index, index.astype(jnp.float32)), jax.random.key(seed), valid)
        assert dealt.index_TxK[:, 0][valid].shape == (4,)
        assert sorted(dealt.index_TxK[:, 0][valid].tolist()) == [0, 2, 3, 5]
        orders.add(tuple(dealt.index_TxK[:, 0].tolist()))
    assert len(orders) > 5
