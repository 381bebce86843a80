"""Routing statistics from sums that were counted by hand."""

import jax.numpy as jnp
import pytest

from mom_jax.analysis.routing import summary
from mom_jax.config import ModelConfig
from mom_jax.routing import Routing, SideStats

CONFIG = ModelConfig(num_attn_modules=2, num_ffn_modules=2, num_steps=2, top_k=1)


def test_summary_of_known_sums():
    # One chunk, two steps, classes (module 0, module 1, SKIP), four tokens.
    choices = jnp.array([[[3.0, 1.0, 0.0], [0.0, 1.0, 3.0]]])
    stats = SideStats(
        probability_C=jnp.zeros((1, 2, 3)),
        top1_C=choices,
        choices_C=choices,
        dropped=jnp.array([[0.0, 1.0]]),
        off_diagonal=jnp.array([[1.0, 0.0]]),
        entropy=jnp.array([[2.0, 4.0]]),
        z=jnp.zeros((1, 2)),
        tokens=jnp.full((1, 2), 4.0),
        further_rounds=jnp.array([[0.0, 2.0]]),
    )
    result = summary(Routing(None, stats), CONFIG)
    assert list(result) == ["ffn"]
    ffn = result["ffn"]
    assert ffn["entropy"] == [0.5, 1.0]
    assert ffn["usage"] == [[0.75, 0.25, 0.0], [0.0, 0.25, 0.75]]
    assert ffn["skip"] == pytest.approx(3 / 8)
    assert ffn["off_diagonal"] == pytest.approx(1 / 8)
    assert ffn["dropped"] == pytest.approx(1 / 5)
    assert ffn["taken"] == pytest.approx(5 / 8)
    assert ffn["further_rounds"] == 2
