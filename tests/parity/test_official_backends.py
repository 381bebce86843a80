"""Every backend that runs here computes what the authors' code does: logits, loss, and every gradient."""

import dataclasses

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mom_jax.interop.official import params_from_official, params_to_official

pytestmark = [pytest.mark.parity, pytest.mark.slow]


@pytest.mark.parametrize(
    "how",
    [
        {"dispatch": "dense", "attention_kernel": "plain", "remat": "none"},
        {"dispatch": "ragged", "remat": "full"},
        {"dispatch": "megablox"},
        {"dispatch": "triton"},
        {"capacity_factor": 100.0},  # room for all
    ],
    ids=lambda how: "-".join(map(str, how.values())),
)
@pytest.mark.parametrize("path", golden.golden_files(), ids=lambda path: path.stem)
def test_backend(path, how):
    loaded = golden.load(path)
    loaded = dataclasses.replace(loaded, config=dataclasses.replace(loaded.config, **how))
    params = jax.tree.map(jnp.asarray, params_from_official(loaded.state_dict, loaded.config))
    options = golden.compiler_options(loaded)
    step = jax.jit(jax.grad(lambda p: golden.run(p, loaded), has_aux=True), compiler_options=options)
    gradient, (result, _, logits) = step(params)
    # Where room is limited padding has no part in it, and other values.
    counts = loaded.arrays.get("attention_mask") if "capacity_factor" in how else None
    real = ... if counts is None else counts.astype(bool)
    golden.close(loaded, "logits", np.asarray(logits)[real], loaded.arrays["logits"][real])
    golden.close(loaded, "loss", result.loss)
    ours = params_to_official(jax.tree.map(np.asarray, gradient), loaded.config)
    for name, value in loaded.grads.items():
        golden.close(loaded, f"grad/{name}", ours[name], value)
