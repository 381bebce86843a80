"""Weights that are read are looked at once; results that are no numbers are no results."""

import json
import math

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from mom_jax.fields import ConfigError
from train.checkpoints.weights import Weights
from train.numbers import NumbersError, for_json
from train.steps.numbers import finite
from train.training.validation import Evaluation, exp


def test_arrays_are_named_whose_numbers_are_none(monkeypatch):
    monkeypatch.setattr(finite, "_PIECE", 8)  # many pieces, of which the last ones are not whole
    rng = np.random.default_rng(0)
    for shape in ((), (3,), (9,), (5, 3), (2, 3, 5), (2, 33), (0, 4)):
        array = rng.normal(size=shape).astype(np.float32)
        assert finite.count(array) == 0
        for place in range(0, array.size, 4):
            bad = array.copy()
            bad.reshape(-1)[place] = (np.nan, np.inf, -np.inf)[place % 3]
            assert finite.count(bad) == 1
            with pytest.raises(
                ConfigError, match=rf"^here: a/0/w has 1 of {max(1, array.size)} numbers that are NaN or inf"
            ):
                finite.check_finite({"a": [{"w": bad}], "step": np.int32(1)}, "here")
    good = {"a": jnp.ones(3), "n": jnp.int32(3)}
    assert finite.check_finite(good, "here") is good
    with pytest.raises(ConfigError, match=r"^here: a has 2 of 3 numbers"):
        finite.check_finite(good | {"a": jnp.array([jnp.nan, 1.0, jnp.inf])}, "here")


def test_a_file_with_such_an_array(tmp_path):
    for dtype in (np.float32, np.float16):
        file = tmp_path / f"{np.dtype(dtype).name}.safetensors"
        save_file({"good": np.ones(2, dtype), "bad": np.array([1, np.nan], dtype), "mask": np.ones(2, bool)}, file)
        weights = Weights([file], "input")
        assert weights["good"].tolist() == [1.0, 1.0]
        with pytest.raises(ConfigError, match="'mask' must be of floats, not bool"):
            weights["mask"]
        with pytest.raises(ConfigError, match=r"^bad has 1 of 2 numbers that are NaN or infinite$"):
            weights["bad"]


def test_a_loss_that_is_none_is_no_result():
    assert math.isnan(exp(math.nan))
    assert exp(800.0) == math.inf
    assert exp(0.0) == 1.0
    good = Evaluation(2.0, 7, {})
    assert good.check("here") is good
    with pytest.raises(NumbersError, match=r"^here: the validation loss is nan, over 7 tokens$"):
        Evaluation(math.nan, 7, {}).check("here")
    record = for_json([{"a": {"b": np.float32(math.nan)}, "c": math.inf, "d": [math.nan, 1], "e": None}])
    want = [{"a": {"b": None, "b_reason": "nan"}, "c": None, "c_reason": "inf", "d": [None, 1], "e": None}]
    assert json.loads(json.dumps(record, allow_nan=False)) == want
