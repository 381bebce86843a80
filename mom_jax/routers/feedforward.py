"""Routers without a state: what a token chooses depends on its residual stream alone."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mom_jax.config import ModelConfig, Side
from mom_jax.layers import normal, zeros
from mom_jax.remat import save
from mom_jax.routers.registry import register
from mom_jax.routers.router import Router, RouterStep


@register("linear")
class Linear(Router):
    """x · W + b, the router of most mixtures of experts."""

    def __init__(self, config: ModelConfig, side: Side, *, rngs: nnx.Rngs):
        super().__init__(config, side, rngs=rngs)
        self._make_scores(config.d_model, rngs)

    def __call__(self, x_TxD: jax.Array, state: Any, step: RouterStep) -> tuple[jax.Array, Any]:
        return self._scores(x_TxD.astype(jnp.float32)), state


@register("mlp")
class Mlp(Router):
    """One hidden layer of width R with relu."""

    computed = ("hidden_kernel",)

    def __init__(self, config: ModelConfig, side: Side, *, rngs: nnx.Rngs):
        super().__init__(config, side, rngs=rngs)
        self.hidden_kernel = normal(rngs, config.d_model, config.router.dim, axes=("width", "hidden"))
        self.hidden_bias = zeros(config.router.dim, axes=("hidden",))
        self._make_scores(config.router.dim, rngs)

    def __call__(self, x_TxD: jax.Array, state: Any, step: RouterStep) -> tuple[jax.Array, Any]:
        hidden = jax.nn.relu(save(self._project(x_TxD, self.hidden_kernel[...], self.hidden_bias[...])))
        return self._scores(hidden), state
