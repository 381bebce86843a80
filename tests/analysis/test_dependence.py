"""Mutual information and its baselines: equal to scikit-learn's estimates, and to what is known of made-up routes."""

import math

import numpy as np
import pytest
from sklearn.metrics import mutual_info_score

from mom_jax.analysis.dependence import dependence, entropy, mutual_information
from mom_jax.analysis.routes import Routes, SideRoutes

RNG = np.random.default_rng(0)


def routes(index, ids, modules=4):
    """Routes of K = 1 from choices [S·H, T] and ids [T], in one sequence."""
    index, tokens = np.asarray(index, np.int32), len(ids)
    side = SideRoutes(index[..., None], np.ones((*index.shape, 1), np.float32), modules)
    place, window = np.arange(tokens, dtype=np.int32), np.zeros(tokens, np.int32)
    return Routes(np.asarray(ids, np.int32), place, window, np.zeros(tokens, np.float32), {"ffn": side}, len(index))


def test_estimates_equal_scikit_learns():
    x, y = RNG.integers(0, 5, 300), RNG.integers(3, 9, 300)
    y = np.where(RNG.random(300) < 0.5, x, y)
    assert mutual_information(x, y) == pytest.approx(mutual_info_score(x, y), abs=1e-12)
    assert entropy(x) == pytest.approx(mutual_info_score(x, x), abs=1e-12)
    index, ids = RNG.integers(0, 6, (3, 200)), RNG.integers(0, 20, 200)
    found = dependence(routes(index, ids))["ffn"]
    top = np.minimum(index, 4)  # all nulls are one class
    steps = np.repeat(np.arange(3), 200)
    assert found.entropy == pytest.approx(mutual_info_score(top.ravel(), top.ravel()), abs=1e-12)
    assert found.step == pytest.approx(mutual_info_score(top.ravel(), steps), abs=1e-12)
    given_step = np.mean([mutual_info_score(row, ids) for row in top])
    assert found.token == pytest.approx(given_step, abs=1e-12)
    assert found.context == pytest.approx(found.entropy - found.step - found.token, abs=1e-12)


def test_what_explains_a_choice_is_found():
    ids = np.repeat(np.arange(8), 50)
    step = dependence(routes(np.repeat([[0], [1], [2], [3]], 400, 1), ids))["ffn"]
    assert (step.entropy, step.step) == pytest.approx((math.log(4), math.log(4)))
    assert step.shares == pytest.approx({"step": 1.0, "token": 0.0, "context": 0.0}, abs=0.01)
    token = dependence(routes(np.repeat(ids[None] % 4, 4, 0), ids))["ffn"]
    assert token.token == pytest.approx(math.log(4))
    assert token.shares == pytest.approx({"step": 0.0, "token": 1.0, "context": 0.0}, abs=0.03)
    # A choice by chance: the estimate for the token is its bias, which the baseline is too.
    context = dependence(routes(RNG.integers(0, 4, (4, 400)), ids))["ffn"]
    assert context.token == pytest.approx(context.token_baseline, abs=0.01)
    assert context.token_baseline == pytest.approx((8 - 1) * (4 - 1) / (2 * 400), rel=0.2)
    assert context.step == pytest.approx(context.step_baseline, abs=0.005)
    assert context.shares["context"] > 0.98
    # Each token once: it explains any choice, and so it does the dealt ones.
    once = dependence(routes(RNG.integers(0, 4, (4, 400)), np.arange(400)))["ffn"]
    assert once.context == pytest.approx(0.0, abs=1e-9)
    assert once.shares["context"] > 0.98


def test_a_choice_that_is_always_the_same_has_no_entropy():
    found = dependence(routes(np.full((2, 10), 4), np.arange(10)))["ffn"]
    assert (found.entropy, found.step, found.token, found.context) == (0, 0, 0, 0)
    assert math.isnan(found.shares["token"])
