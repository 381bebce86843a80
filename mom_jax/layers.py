"""The sublayers of a GPT-2 layer, alone (anchors) or stacked N to a pool, and causal attention.

A sublayer's layer norm is split: the statistics are per token and taken once (`normalise`); its scale and bias belong
to the sublayer and fold into its first matrix, diag(g)·W and b·W + c, once per forward pass however often it is used.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from mom_jax.attention import KV, View, attend, dropout
from mom_jax.config import ModelConfig
from mom_jax.dispatch import Linear, linear
from mom_jax.remat import save

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "relu": jax.nn.relu,
}
INIT_STD = 0.02


class SublayerWeights(NamedTuple):
    """A sublayer ready for use, with or without a leading module axis: layer norm folded in, float32.

    first: [D, E] and [E]; E = 3D for attention (query, key, value side by side), F for an FFN. last: into width D.
    """

    first_kernel: jax.Array
    first_bias: jax.Array
    last_kernel: jax.Array
    last_bias: jax.Array


def normal(rngs: nnx.Rngs, *shape: int, std: float = INIT_STD) -> nnx.Param:
    """A float32 parameter drawn from N(0, std²)."""
    return nnx.Param(std * jax.random.normal(rngs.params(), shape, jnp.float32))


def zeros(*shape: int) -> nnx.Param:
    return nnx.Param(jnp.zeros(shape, jnp.float32))


def ones(*shape: int) -> nnx.Param:
    return nnx.Param(jnp.ones(shape, jnp.float32))


def normalise(x: jax.Array, epsilon: float) -> jax.Array:
    """`x` [..., D] with zero mean and unit variance over D, computed in float32, in the dtype of `x`."""
    wide = x.astype(jnp.float32)
    centred = wide - wide.mean(-1, keepdims=True)
    variance = jnp.square(centred).mean(-1, keepdims=True)
    return (centred * jax.lax.rsqrt(variance + epsilon)).astype(x.dtype)


def fold(scale: jax.Array, bias: jax.Array, kernel: jax.Array, kernel_bias: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The layer norm's scale and bias [..., D] folded into the linear map [..., D, E], [..., E] that follows."""
    return scale[..., None] * kernel, jnp.einsum("...d,...de->...e", bias, kernel) + kernel_bias


class Sublayer(nnx.Module):
    """Parameters of one pre-norm sublayer, or of N stacked ones (every array with a leading axis N)."""

    first: str  # the name of the first linear map; the second's is "out"

    def __init__(
        self, config: ModelConfig, width: int, inner: int, stack: tuple[int, ...], out_std: float, rngs: nnx.Rngs
    ):
        self.config = config
        d = config.d_model
        self.norm_scale, self.norm_bias = ones(*stack, d), zeros(*stack, d)
        setattr(self, f"{self.first}_kernel", normal(rngs, *stack, d, width))
        setattr(self, f"{self.first}_bias", zeros(*stack, width))
        self.out_kernel, self.out_bias = normal(rngs, *stack, inner, d, std=out_std), zeros(*stack, d)

    def weights(self) -> SublayerWeights:
        """The folded weights."""
        first = getattr(self, f"{self.first}_kernel")[...], getattr(self, f"{self.first}_bias")[...]
        kernel, bias = fold(self.norm_scale[...], self.norm_bias[...], *first)
        return SublayerWeights(kernel, bias, self.out_kernel[...], self.out_bias[...])


class Attention(Sublayer):
    """Layer norm, fused QKV projection [D, 3D], output projection [D, D]."""

    first = "qkv"

    def __init__(self, config: ModelConfig, *, stack: tuple[int, ...] = (), out_std: float, rngs: nnx.Rngs):
        super().__init__(config, 3 * config.d_model, config.d_model, stack, out_std, rngs)


class FFN(Sublayer):
    """Layer norm, inner projection [D, F], activation, output projection [F, D]."""

    first = "in"

    def __init__(self, config: ModelConfig, *, stack: tuple[int, ...] = (), out_std: float, rngs: nnx.Rngs):
        super().__init__(config, config.inner_width, config.inner_width, stack, out_std, rngs)


def ffn(
    linear: Linear, rows: jax.Array, multiplier: jax.Array | None, weights: SublayerWeights, *, activation: str
) -> jax.Array:
    """An FFN on normalised rows [P, D], its result times `multiplier` [P, 1]."""
    inner = save(linear(rows, weights.first_kernel, weights.first_bias))
    return linear(ACTIVATIONS[activation](inner), weights.last_kernel, weights.last_bias, multiplier)


def plain_attention(
    weights: SublayerWeights, x: jax.Array, view: View, config: ModelConfig, *, key: jax.Array | None, cache: KV | None
) -> tuple[jax.Array, KV | None]:
    """The attention sublayer of a GPT-2 layer: its contribution to the residual stream x [B, L, D], and the cache."""
    probability_key, output_key = (None, None) if key is None else jax.random.split(key)
    rows = normalise(x, config.layer_norm_epsilon).reshape(-1, x.shape[-1])
    qkv = save(linear(rows, weights.first_kernel, weights.first_bias))
    output, cache = attend(qkv.reshape(*x.shape[:2], -1), view, config, key=probability_key, cache=cache)
    output = save(linear(output.reshape(rows.shape), weights.last_kernel, weights.last_bias))
    return dropout(output.reshape(x.shape), config.dropout.residual, output_key), cache


def plain_ffn(weights: SublayerWeights, x: jax.Array, config: ModelConfig, *, key: jax.Array | None) -> jax.Array:
    """The feed-forward sublayer of a GPT-2 layer: its contribution to the residual stream x [B, L, D]."""
    rows = normalise(x, config.layer_norm_epsilon).reshape(-1, x.shape[-1])
    output = ffn(linear, rows, None, weights, activation=config.activation)
    return dropout(output.reshape(x.shape), config.dropout.residual, key)


class Layer(nnx.Module):
    """An anchor: a plain pre-norm GPT-2 layer."""

    def __init__(self, config: ModelConfig, *, out_std: float, rngs: nnx.Rngs):
        self.config = config
        self.attention = Attention(config, out_std=out_std, rngs=rngs)
        self.ffn = FFN(config, out_std=out_std, rngs=rngs)

    def __call__(
        self, x: jax.Array, view: View, *, key: jax.Array | None = None, cache: KV | None = None
    ) -> tuple[jax.Array, KV | None]:
        """x [B, L, D] -> (x after the layer, the cache)."""
        attention_key, ffn_key = (None, None) if key is None else jax.random.split(key)
        y, cache = plain_attention(self.attention.weights(), x, view, self.config, key=attention_key, cache=cache)
        x = x + y
        return x + plain_ffn(self.ffn.weights(), x, self.config, key=ffn_key), cache
