"""A router of one's own: a direction for each class, and a memory of what the token was like at earlier steps.

Classes are scored by the cosine of their direction and the token's, which is down-projected (X-MoE, arXiv 2204.09179),
and here the mean over the steps so far, of which the recent ones count more.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from mom_jax.layers import normal
from mom_jax.routers import Router, register

DECAY = 0.5


@register("cosine")
class CosineRouter(Router):
    def __init__(self, config, side, *, rngs):
        super().__init__(config, side, rngs=rngs)
        width = config.router.dim
        # Anything of nnx.Param will do; on a mesh every device has all of it.
        self.down = nnx.Linear(config.d_model, width, use_bias=False, rngs=rngs)
        self.gain_scale = nnx.Param(jnp.ones(1))
        # The names of axes say what devices divide ("width") and what pruning cuts ("classes").
        self.directions = normal(rngs, width, config.classes(side), axes=("width", "classes"), std=1.0)

    def initial_state(self, tokens):
        return {"sum": jnp.zeros((tokens, self.config.router.dim)), "weight": jnp.zeros((tokens, 1))}

    def __call__(self, x_TxD, state, step):
        token = self.down(x_TxD.astype(jnp.float32))
        state = {"sum": DECAY * state["sum"] + token, "weight": DECAY * state["weight"] + 1}
        mean = unit(state["sum"] / state["weight"], axis=-1)
        cosine = jnp.matmul(mean, unit(self.directions[...], axis=0), precision=jax.lax.Precision.HIGHEST)
        return self.gain_scale[...][None] * cosine, state


def unit(x, axis):
    return x * jax.lax.rsqrt(jnp.square(x).sum(axis, keepdims=True) + 1e-6)
