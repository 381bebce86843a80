"""Every backend that runs here computes what the authors' code does: logits, loss, and every gradient.

Compiling all of them for every golden takes ten minutes and finds no more: how a backend multiplies does not depend on
what a golden is about. So each golden meets one, in turn.
"""

import dataclasses
import itertools

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mom_jax.interop.official import params_from_official, params_to_official

pytestmark = [pytest.mark.parity, pytest.mark.slow]


WAYS = {
    "dense": {"dispatch": "dense", "attention_kernel": "plain", "remat": "none"},
    "ragged": {"dispatch": "ragged", "remat": "full"},
    "megablox": {"dispatch": "megablox"},
    "triton": {"dispatch": "triton"},
    "capacity": {"capacity_factor": 100.0},  # room for all
}


MEETINGS = [
    pytest.param(path, WAYS[way], id=f"{path.stem}-{way}")
    for path, way in zip(golden.golden_files(), itertools.cycle(WAYS), strict=False)
]


@pytest.mark.parametrize(("path", "how"), MEETINGS)
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
