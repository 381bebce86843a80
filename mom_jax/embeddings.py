"""The ends of the model: embeddings, the final layer norm, and the heads."""

import jax
import jax.numpy as jnp
from flax import nnx

from mom_jax.config import ModelConfig
from mom_jax.layers import normal, normalise, ones, zeros


class Embedding(nnx.Module):
    """Learned token and position embeddings."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        # The vocabulary (29 x 1733) divides by no number of devices: the width does.
        self.tokens = normal(rngs, config.vocab_size, config.d_model, axes=("vocab", "width"))
        self.positions = normal(rngs, config.context_length, config.d_model, axes=("positions", "width"))


class FinalNorm(nnx.Module):
    """GPT-2's ln_f."""

    def __init__(self, config: ModelConfig):
        self.config = config
        self.scale = ones(config.d_model, axes=("width",))
        self.bias = zeros(config.d_model, axes=("width",))

    def __call__(self, x: jax.Array) -> jax.Array:
        y = normalise(x, self.config.layer_norm_epsilon).astype(jnp.float32)
        return (y * self.scale[...][None, None] + self.bias[...][None, None]).astype(x.dtype)


class Unembedding(nnx.Module):
    """The language model's head, where it is not the token embedding: a linear map to logits [V, D], without bias."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.kernel = normal(rngs, config.vocab_size, config.d_model, axes=("vocab", "width"))


class Head(nnx.Module):
    """A linear map to class logits, without bias."""

    def __init__(self, d_model: int, num_classes: int, *, rngs: nnx.Rngs):
        self.kernel = normal(rngs, d_model, num_classes, axes=("width", "classes"))
