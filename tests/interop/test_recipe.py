"""The library's own recipe: a start that is the vanilla model, from which the routers learn."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx
from small import SMALL, assert_close, quick, random_ids, random_params

from mom_jax import losses
from mom_jax.config import ChoiceConfig
from mom_jax.fields import ConfigError
from mom_jax.interop.phases import from_vanilla
from mom_jax.interop.recipe import recommended
from mom_jax.model import MoM, parameters, with_parameters


@pytest.mark.parametrize("parts", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_it_starts_as_the_vanilla_model_and_its_routers_learn(parts):
    config = recommended(SMALL, parts=parts)
    assert (config.ffn.top_k, config.num_ffn_modules, config.routed_sides) == (parts, 3 * parts, ("ffn",))
    vanilla, ids = random_params(SMALL.vanilla(), 1), random_ids()
    new = random_params(config)
    new["chunks"][0]["ffn_router"] |= {
        name: np.zeros_like(array) for name, array in new["chunks"][0]["ffn_router"].items() if name != "step_bias"
    }
    own = np.repeat(np.eye(3, dtype=np.float32), parts, axis=1)
    new["chunks"][0]["ffn_router"]["step_bias"] = 2.0 * own  # as in a new model
    params, _ = from_vanilla(SMALL.vanilla(), vanilla, config, new)

    def loss(params):
        output = with_parameters(config, params)(ids)
        nll, count = losses.next_token(output, ids)
        return nll / count, output.logits

    expected = with_parameters(SMALL.vanilla(), vanilla)(ids).logits
    (_, logits), gradient = quick(jax.value_and_grad(loss, has_aux=True))(params)
    assert_close(logits, expected, atol=2e-5, rtol=2e-5)
    for name, own in gradient["chunks"][0]["ffn_router"].items():
        assert np.abs(own).max() > 1e-5, name


def test_a_new_model_starts_as_the_vanilla_one_where_its_scores_do():
    """Here with parameters of NumPy's, as files are read."""
    config = recommended(SMALL, parts=2, score_init=0.0)
    vanilla, ids = random_params(SMALL.vanilla(), 1), random_ids()
    new = jax.tree.map(np.asarray, parameters(MoM(config, rngs=nnx.Rngs(0))))
    params, _ = from_vanilla(SMALL.vanilla(), vanilla, config, new)
    params = jax.tree.map(np.asarray, params)
    want, got = (with_parameters(*pair)(ids).logits for pair in ((SMALL.vanilla(), vanilla), (config, params)))
    assert_close(got, want, atol=2e-5, rtol=2e-5)


def test_new_parameters_prefer_the_own_modules():
    config = recommended(dataclasses.replace(SMALL, attention=ChoiceConfig(preference=1.0)), parts=2, taken=3)
    assert (config.ffn.top_k, config.module_d_ff, config.skip) == (3, SMALL.d_ff // 2, False)
    assert config.attention == ChoiceConfig(choice="ordered")
    assert config.router.step_bias == 2.0
    np.testing.assert_allclose(config.ffn.scale / (1 + np.exp(-2.0)), 1)
    assert recommended(SMALL, step_bias=None).ffn.scale == 2.0


@pytest.mark.parametrize("parts", [0, 5])
def test_parts_that_do_not_divide(parts):
    with pytest.raises(ConfigError, match=rf"parts={parts}: must divide d_ff=24"):
        recommended(SMALL, parts=parts)
