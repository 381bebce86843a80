"""Captured routes equal what the plain reference chooses, in the order of the text, without padding."""

import jax
import mesh_steps
import numpy as np
import pytest
import reference
from devices import on_eight
from flax import nnx
from jax.sharding import NamedSharding
from small import SMALL, change, quick, random_params

from mom_jax.analysis.paths import churn
from mom_jax.analysis.routes import capture
from mom_jax.analysis.specialisation import measure
from mom_jax.config import RouterConfig
from mom_jax.model import MoM
from mom_jax.sharding import MeshConfig, make_mesh, parameter_specs

CONFIG = change(SMALL, num_bottom=1, num_chunks=2, num_steps=2, anchor_after_chunk=True, router=RouterConfig(dim=8))


def batch(rows, seed=0):
    """Three documents in two rows: 5 and 3 tokens and a token of padding; 6 tokens and 3 of padding."""
    ids = np.random.default_rng(seed).integers(0, CONFIG.vocab_size, (2, 9)).astype(np.int32)
    segments = np.array([[1] * 5 + [2] * 3 + [0], [1] * 6 + [0] * 3], np.int32)
    positions = np.array([[0, 1, 2, 3, 4, 0, 1, 2, 0], [0, 1, 2, 3, 4, 5, 0, 0, 0]], np.int32)
    return {"tokens": ids[:rows], "segment_ids": segments[:rows], "positions": positions[:rows]}


@pytest.fixture(scope="module")
def params():
    return random_params(CONFIG)


def test_routes_equal_the_references_choices(params):
    data = batch(2)
    routes = capture(params, CONFIG, [data], step=0)
    real = data["segment_ids"] > 0
    assert routes.tokens == 14
    assert routes.steps == 4
    np.testing.assert_array_equal(routes.ids_T, data["tokens"][real])
    np.testing.assert_array_equal(routes.position_T, data["positions"][real])
    np.testing.assert_array_equal(routes.window_T, [0] * 5 + [1] * 3 + [2] * 6)
    ends = np.array([4, 7, 13])
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(routes.loss_T)), ends)
    forward = quick(lambda ids: reference.forward(params, ids, CONFIG))
    for window in range(3):
        own = routes.window_T == window
        out = forward(np.pad(routes.ids_T[own], (0, 6 - own.sum()))[None])
        out = {name: x[:, : own.sum()] for name, x in out.items()}
        log_p = np.asarray(jax.nn.log_softmax(out["logits"][0], -1))
        want = -np.take_along_axis(log_p[:-1], routes.ids_T[own][1:, None], 1)[:, 0]
        np.testing.assert_allclose(routes.loss_T[own][:-1], want, atol=2e-5)
        for short, side in (("attn", "attention"), ("ffn", "ffn")):
            for step in range(4):
                scores = np.asarray(out[f"{short}_scores/{step}"]).reshape(own.sum(), -1)
                order = np.argsort(-scores, -1)[:, :2]
                np.testing.assert_array_equal(routes.sides[side].index[step, own], order)
                best = np.take_along_axis(scores, order, 1)
                weight = routes.sides[side].weight[step, own]
                np.testing.assert_allclose(weight, best / best.sum(-1, keepdims=True), atol=5e-5)


def test_batches_are_read_up_to_the_limit(params):
    def batches():
        yield batch(2)
        yield batch(2, seed=1)
        raise AssertionError("read on")

    whole = capture(params, CONFIG, [batch(2), batch(2, seed=1)], step=0)
    assert whole.tokens == 28
    assert whole.window_T[-1] == 5
    some = capture(params, CONFIG, batches(), limit=20, step=0)
    assert some.tokens == 20
    for name in ("ids_T", "position_T", "window_T", "loss_T"):
        np.testing.assert_array_equal(getattr(some, name), getattr(whole, name)[:20])
    for side, own in whole.sides.items():
        np.testing.assert_array_equal(some.sides[side].index, own.index[:, :20])
        np.testing.assert_array_equal(own.top, np.minimum(own.index[..., 0], 3))
        np.testing.assert_array_equal(own.real, (own.index < 3).sum(-1))
    padding = batch(2) | {"segment_ids": np.zeros((2, 9), np.int32)}
    with pytest.raises(ValueError, match="at least one batch with a token"):
        capture(params, CONFIG, [padding], step=0)


def differences_on_a_mesh(shape):
    """What is measured on a mesh, against one device: [different choices, losses, similarity]."""
    config = change(mesh_steps.MODEL, top_k=2)
    params = random_params(config)
    ids = np.random.default_rng(0).integers(0, config.vocab_size, (6, 16)).astype(np.int32)  # not a row for each
    mesh = make_mesh(MeshConfig(*shape))
    specs = parameter_specs(nnx.eval_shape(lambda: MoM(config, rngs=nnx.Rngs(0))), mesh)
    placed = jax.tree.map(lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec)), params, specs)
    one = measure(params, config, [{"tokens": ids}], step=0)
    many = measure(placed, config, [{"tokens": ids}], step=0, mesh=mesh)
    np.testing.assert_array_equal(one.routes.window_T, many.routes.window_T)
    churned = max(churn(one.routes.tops, many.routes.tops).values())
    tables = [(own, many.similarity[side]) for side, own in one.similarity.items()]
    # Rows on other devices give the stream before the same steps.
    similar = max(float(np.abs(a.outputs - b.outputs).max()) for a, b in tables)
    return churned, float(np.nanmax(np.abs(one.routes.loss_T - many.routes.loss_T))), similar


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(2, 2, 2, 1), (2, 1, 2, 2)])
def test_a_measurement_on_a_mesh_is_one_on_one_device(shape):
    churned, loss, similar = on_eight(differences_on_a_mesh, shape)
    assert churned < 0.01
    assert loss < 5e-4  # nats; sums of float32 in another order
    assert similar < 1e-3
