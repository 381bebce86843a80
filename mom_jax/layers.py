"""The sublayers of a GPT-2 layer, alone (anchors) or stacked N to a pool, and causal attention.

A sublayer's layer norm is split: the statistics are per token and taken once (`normalise`); its scale and bias belong
to the sublayer and fold into its first matrix, diag(g)·W and b·W + c, once per forward pass however often it is used.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from mom_jax.config import ModelConfig

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "relu": jax.nn.relu,
}
INIT_STD = 0.02


class KV(NamedTuple):
    """Keys and values of M slots, [B, M, D] each."""

    key: jax.Array
    value: jax.Array


class SublayerWeights(NamedTuple):
    """A sublayer ready for use, with or without a leading module axis: layer norm folded in, in the compute dtype.

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


def linear(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """x [..., D] · kernel [D, E] + bias [E], accumulated in float32, in the dtype of `x`."""
    y = jax.lax.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())), preferred_element_type=jnp.float32)
    return (y + jnp.expand_dims(bias.astype(jnp.float32), range(x.ndim - 1))).astype(x.dtype)


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zeroes entries with probability `rate` and scales the others up; without a key nothing happens."""
    if key is None or rate == 0:
        return x
    keep = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(keep, x / (1 - rate), jnp.zeros_like(x))


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
        """The folded weights, in the configuration's compute dtype."""
        first = getattr(self, f"{self.first}_kernel")[...], getattr(self, f"{self.first}_bias")[...]
        kernel, bias = fold(self.norm_scale[...], self.norm_bias[...], *first)
        weights = SublayerWeights(kernel, bias, self.out_kernel[...], self.out_bias[...])
        return jax.tree.map(lambda w: w.astype(self.config.dtype), weights)


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


class View(NamedTuple):
    """What attention may see in this call.

    visible: [B or 1, L, M] bool, token l sees slot m. start: the slot of the call's first token where a cache is used.
    """

    visible: jax.Array
    start: jax.Array | None = None


def attend(
    qkv: jax.Array, view: View, config: ModelConfig, *, key: jax.Array | None, cache: KV | None
) -> tuple[jax.Array, KV | None]:
    """Causal multi-head attention over qkv [B, L, 3D]: (output [B, L, D], the cache with this call's keys and values).

    Logits and softmax are float32. A token that sees nothing gets the mean of all values; only padding is in that case.
    """
    q, k, v = jnp.split(qkv, 3, -1)
    if cache is not None:
        assert view.start is not None
        at = (0, view.start, 0)
        cache = KV(jax.lax.dynamic_update_slice(cache.key, k, at), jax.lax.dynamic_update_slice(cache.value, v, at))
        k, v = cache
    heads = (config.num_heads, config.head_dim)
    q, k, v = (t.reshape(*t.shape[:2], *heads) for t in (q, k, v))
    logits = jnp.einsum("blhd,bmhd->bhlm", q, k, preferred_element_type=jnp.float32) * config.head_dim**-0.5
    logits = jnp.where(view.visible[:, None], logits, jnp.finfo(jnp.float32).min)
    probability = dropout(jax.nn.softmax(logits, -1), config.dropout.attention, key).astype(v.dtype)
    output = jnp.einsum("bhlm,bmhd->blhd", probability, v)
    return output.reshape(*output.shape[:2], -1), cache


def plain_attention(
    weights: SublayerWeights, x: jax.Array, view: View, config: ModelConfig, *, key: jax.Array | None, cache: KV | None
) -> tuple[jax.Array, KV | None]:
    """The attention sublayer of a GPT-2 layer: its contribution to the residual stream x [B, L, D], and the cache."""
    probability_key, output_key = (None, None) if key is None else jax.random.split(key)
    qkv = linear(normalise(x, config.layer_norm_epsilon), weights.first_kernel, weights.first_bias)
    output, cache = attend(qkv, view, config, key=probability_key, cache=cache)
    output = linear(output, weights.last_kernel, weights.last_bias)
    return dropout(output, config.dropout.residual, output_key), cache


def plain_ffn(weights: SublayerWeights, x: jax.Array, config: ModelConfig, *, key: jax.Array | None) -> jax.Array:
    """The feed-forward sublayer of a GPT-2 layer: its contribution to the residual stream x [B, L, D]."""
    inner = linear(normalise(x, config.layer_norm_epsilon), weights.first_kernel, weights.first_bias)
    output = linear(ACTIVATIONS[config.activation](inner), weights.last_kernel, weights.last_bias)
    return dropout(output, config.dropout.residual, key)


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
