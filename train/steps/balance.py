"""The routers' `balance_bias`, which no optimizer trains: it follows what was chosen."""

from typing import Any

import jax.numpy as jnp

from mom_jax.config import ModelConfig
from mom_jax.routers import adjusted, has_balance_bias
from mom_jax.routing import Routing


def balanced(params: dict[Any, Any], before: dict[Any, Any], routing: Routing, config: ModelConfig) -> dict[Any, Any]:
    """The parameters after an optimizer step with the biases adjusted from those `before` it.

    routing: the statistics of the whole batch, on all devices.
    """
    sides = [side for side in routing.sides() if has_balance_bias(config, side)]
    if not sides:
        return params
    chunks = {s: dict(chunk) for s, chunk in params["chunks"].items()}
    for side in sides:
        name, choices_SxC = f"{side}_router", routing.sides()[side].choices_C.sum(1)
        old = jnp.stack([before["chunks"][s][name]["balance_bias"] for s in chunks])
        new = adjusted(old, choices_SxC, config, side)
        for i, s in enumerate(chunks):
            chunks[s][name] = chunks[s][name] | {"balance_bias": new[i]}
    return {**params, "chunks": chunks}
