"""Paths of made-up routes, counted by hand."""

import math

import numpy as np
import pytest

from mom_jax.analysis import paths
from mom_jax.analysis.routes import Routes, SideRoutes

# Two steps, four tokens in two sequences, K = 2; 3 and 4 are nulls of attention, 2 of the FFN.
ATTENTION = np.array([[[0, 1], [0, 3], [3, 4], [0, 1]], [[2, 0], [2, 0], [1, 2], [2, 0]]], np.int32)
FFN = np.array([[[0, 1], [1, 0], [2, 1], [0, 1]], [[0, 2], [0, 2], [2, 0], [0, 2]]], np.int32)


def routes(**fields):
    sides = {
        "attention": SideRoutes(ATTENTION, np.full(ATTENTION.shape, 0.5, np.float32), 3),
        "ffn": SideRoutes(FFN, np.full(FFN.shape, 0.25, np.float32), 2),
    }
    values = {
        "ids_T": np.array([7, 7, 5, 2], np.int32),
        "position_T": np.array([0, 1, 2, 0], np.int32),
        "window_T": np.array([0, 0, 0, 1], np.int32),
        "loss_T": np.array([1.0, 2.0, np.nan, np.nan], np.float32),
        "sides": sides,
        "steps": 2,
    }
    return Routes(**(values | fields))


def test_depth_counts_modules_of_both_sides():
    found = paths.depth(routes())
    np.testing.assert_array_equal(found.per_token, [7, 6, 4, 7])
    assert found.most == 8
    histogram = [0, 0, 0, 0, 0.25, 0, 0.25, 0.5, 0]
    assert found.record() == {"mean": 6.0, "min": 4, "max": 7, "histogram": histogram}
    only = routes(sides={"ffn": routes().sides["ffn"]})  # attention then takes one module a step
    np.testing.assert_array_equal(paths.depth(only).per_token, [5, 5, 4, 5])
    assert paths.depth(only).most == 6


def test_a_tokens_path_and_the_distribution_of_paths():
    first, second = paths.token_path(routes(), 2)
    assert [c.module for c in first["attention"]] == [None, None]
    assert [c.module for c in second["attention"]] == [1, 2]
    assert second["ffn"] == [paths.Choice(None, 0.25), paths.Choice(0, 0.25)]
    found = paths.path_distribution(routes(), most=1)
    assert (found.sides, found.distinct, found.tokens) == (("attention", "ffn"), 3, 4)
    assert found.top == (paths.Path((0, 0, 2, 0), 2, 0.5),)
    assert found.entropy == pytest.approx(1.5 * math.log(2))
    assert paths.Path((None, None, 1, None), 1, 0.25) in paths.path_distribution(routes()).top


def test_transitions_and_churn():
    [attention] = paths.transitions(routes())["attention"]
    want = np.zeros((4, 4))
    want[0, 2], want[3, 1] = 1.0, 1.0
    np.testing.assert_array_equal(attention, want)
    [ffn] = paths.transitions(routes())["ffn"]
    np.testing.assert_array_equal(ffn, [[1, 0, 0], [1, 0, 0], [0, 0, 1]])
    other = SideRoutes(ATTENTION[:, ::-1], np.zeros(ATTENTION.shape, np.float32), 3)
    after = routes(sides={"attention": other, "ffn": routes().sides["ffn"]})
    assert paths.churn(routes().tops, after.tops) == {"attention": 0.5, "ffn": 0.0}
    assert paths.churn(routes().tops, routes().tops) == {"attention": 0.0, "ffn": 0.0}


def test_usage_by_classes_of_tokens():
    bands = paths.frequency_bands(routes(), bands=2)
    np.testing.assert_array_equal(bands.of_token, [0, 0, 1, 1])  # id 7 is half of the text
    np.testing.assert_array_equal(
        paths.frequency_bands(routes(), np.array([0, 0, 90, 0, 0, 5, 0, 5])).of_token, [3, 3, 3, 0]
    )
    places = paths.position_bands(routes(position_T=np.array([0, 1, 3, 9], np.int32)))
    assert [places.names[i] for i in places.of_token] == ["0", "1", "2-3", "8-15"]
    found = paths.usage_by_class(routes(), bands)
    first, second = found.values()
    assert (first["tokens"], first["loss"], first["depth"]) == (2, 1.5, 6.5)
    assert first["attention"] == pytest.approx([4 / 8, 1 / 8, 2 / 8, 1 / 8])
    assert second["loss"] is None
    assert second["ffn"] == pytest.approx([3 / 8, 2 / 8, 3 / 8])


def test_kinds_of_tokens():
    pieces = ["The", " cat", "s", "(", "ab", " 12", "\n\n", "", "\N{REPLACEMENT CHARACTER}", "x"]
    window = np.array([0] * 9 + [1], np.int32)
    found = paths.token_kinds(routes(window_T=window), pieces)
    kinds = (
        "word start, word start, continuation, punctuation, word start, number, whitespace, other, other, word start"
    )
    assert [found.names[i] for i in found.of_token] == kinds.split(", ")
