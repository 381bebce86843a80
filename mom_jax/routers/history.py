"""A router that attends to what it has seen of its token at all steps so far."""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from mom_jax.config import ModelConfig, Side
from mom_jax.layers import normal, normalise, zeros
from mom_jax.remat import save
from mom_jax.routers.registry import register
from mom_jax.routers.router import Router, RouterStep


@register("transformer")
class Transformer(Router):
    """One pre-norm transformer layer of width R over the token's own assembly steps, causal, without other tokens.

    Step h's entry is the residual stream, projected, plus an embedding of the step, normalised: layer norms have no
    scale and bias, since linear maps follow. The state [T, H, R] has the entries, 0 where a step is still to come. Keys
    and values are never made: a head's query is taken back through the map of the keys, and what it attends to goes
    through the map of the values afterwards, which needs H times fewer products than making both anew at every step.
    """

    computed = ("input_kernel", "query_kernel", "in_kernel", "out_kernel")

    def __init__(self, config: ModelConfig, side: Side, *, rngs: nnx.Rngs):
        super().__init__(config, side, rngs=rngs)
        d, r, a = config.d_model, config.router.dim, config.router.heads
        self.input_kernel = normal(rngs, d, r, axes=("width", "hidden"))
        self.input_bias = zeros(r, axes=("hidden",))
        self.step_embedding = normal(rngs, config.num_steps, r, axes=("steps", "hidden"))
        self.query_kernel = normal(rngs, r, r, axes=("width", "hidden"))
        self.key_kernel = normal(rngs, r, a, r // a, axes=("width", "parts", "hidden"))
        self.value_kernel = normal(rngs, r, a, r // a, axes=("width", "parts", "hidden"))
        self.attention_kernel = normal(rngs, r, r, axes=("width", "hidden"))
        self.attention_bias = zeros(r, axes=("hidden",))
        self.in_kernel = normal(rngs, r, 2 * r, axes=("width", "hidden"))
        self.in_bias = zeros(2 * r, axes=("hidden",))
        self.out_kernel = normal(rngs, 2 * r, r, axes=("width", "hidden"))
        self.out_bias = zeros(r, axes=("hidden",))
        self._make_scores(r, rngs)

    def initial_state(self, tokens: int) -> jax.Array:
        """[T, H, R] zeros."""
        return jnp.zeros((tokens, self.config.num_steps, self.config.router.dim), jnp.float32)

    def __call__(self, x_TxD: jax.Array, state: jax.Array, step: RouterStep) -> tuple[jax.Array, jax.Array]:
        epsilon = self.config.layer_norm_epsilon
        own = save(self._project(x_TxD, self.input_kernel[...], self.input_bias[...]))
        own = own + self.step_embedding[...][step.number][None]
        entry = normalise(own, epsilon)
        now = jnp.arange(self.config.num_steps, dtype=jnp.int32) == step.number
        state = jnp.where(now[None, :, None], entry[:, None], state)
        own = own + self._attention(entry, state, step)
        inner = jax.nn.relu(save(self._project(normalise(own, epsilon), self.in_kernel[...], self.in_bias[...])))
        own = own + save(self._project(inner, self.out_kernel[...], self.out_bias[...]))
        return self._scores(normalise(own, epsilon)), state

    def _attention(self, entry: jax.Array, state: jax.Array, step: RouterStep) -> jax.Array:
        """What the step's entry [T, R] gains from the entries so far of the state [T, H, R]."""
        heads = self.config.router.heads
        query = save(self._project(entry, self.query_kernel[...])).reshape(entry.shape[0], heads, -1)
        back = save(jnp.einsum("tad,rad->tar", query, self.key_kernel[...])) / math.sqrt(query.shape[-1])
        logits = jnp.einsum("tar,thr->tah", back, state)
        seen = jnp.arange(self.config.num_steps, dtype=jnp.int32) <= step.number
        weights = jax.nn.softmax(jnp.where(seen[None, None], logits, -jnp.inf), -1)
        mixed = jnp.einsum("tah,thr->tar", weights, state)
        values = save(jnp.einsum("tar,rad->tad", mixed, self.value_kernel[...])).reshape(entry.shape)
        return self._project(values, self.attention_kernel[...], self.attention_bias[...])
