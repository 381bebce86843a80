"""The sublayers of a GPT-2 layer, alone (anchors) or stacked N to a pool, and causal attention.

A sublayer's layer norm is split: the statistics are per token and taken once (`normalise`); its scale and bias belong
to the sublayer and fold into its first matrix, diag(g)·W and b·W + c, once per forward pass however often it is used.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from flax import nnx

from mom_jax.attention import KV, View, attend, dropout
from mom_jax.checks import check_array
from mom_jax.config import ModelConfig
from mom_jax.dispatch import Linear, linear
from mom_jax.remat import save
from mom_jax.sharding import gather, gather_tokens, scatter_tokens, size, sum_of_parts

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

    def cast(self, dtype: Any) -> "SublayerWeights":
        """With the matrices in `dtype`, for weights that are used many times."""
        return self._replace(first_kernel=self.first_kernel.astype(dtype), last_kernel=self.last_kernel.astype(dtype))


class Projection(NamedTuple):
    """A linear map ready for use, with or without a leading module axis: kernel [D, E], bias [E]."""

    kernel: jax.Array
    bias: jax.Array


# Parameters are made with the logical names of their axes (mom_jax/sharding/mesh.py), and remember their whole shape.


def parameter(value: jax.Array, axes: tuple[str, ...]) -> nnx.Param:
    """A parameter whose axes have these logical names."""
    chex.assert_rank(value, len(axes))
    return nnx.Param(value, axes=axes, whole=value.shape)


def normal(rngs: nnx.Rngs, *shape: int, axes: tuple[str, ...], std: float = INIT_STD) -> nnx.Param:
    """A float32 parameter drawn from N(0, std²)."""
    return parameter(std * jax.random.normal(rngs.params(), shape, jnp.float32), axes)


def zeros(*shape: int, axes: tuple[str, ...]) -> nnx.Param:
    """A float32 parameter of zeros."""
    return parameter(jnp.zeros(shape, jnp.float32), axes)


def ones(*shape: int, axes: tuple[str, ...]) -> nnx.Param:
    """A float32 parameter of ones."""
    return parameter(jnp.ones(shape, jnp.float32), axes)


def normalise(x: jax.Array, epsilon: float) -> jax.Array:
    """`x` [..., D] with zero mean and unit variance over D, computed in float32, in the dtype of `x`."""
    wide = x.astype(jnp.float32)
    centred = wide - wide.mean(-1, keepdims=True)
    variance = jnp.square(centred).mean(-1, keepdims=True)
    return (centred * jax.lax.rsqrt(variance + epsilon)).astype(x.dtype)


def fold(scale: jax.Array, bias: jax.Array, kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The layer norm's scale and bias [..., D] folded into the linear map [..., D, E] that follows: its kernel, and
    what its bias [..., E] gains."""
    return scale[..., None] * kernel, jnp.einsum("...d,...de->...e", bias, kernel)


class Sublayer(nnx.Module):
    """Parameters of one pre-norm sublayer, or of N stacked ones (every array with a leading axis N)."""

    first: str  # the name of the first linear map; the second's is "out"
    inner: str  # the logical axis between the two maps, which devices divide in the computation too

    def __init__(
        self,
        config: ModelConfig,
        width: tuple[int, ...],
        inner: int,
        stack: dict[str, int],
        out_std: float,
        rngs: nnx.Rngs,
    ):
        self.config, d = config, config.d_model
        lead, names = tuple(stack.values()), tuple(stack)
        # The width of the first map: its last axis is the divided one.
        inner_names = ("parts",) * (len(width) - 1) + (self.inner,)
        embed = (*names, "embed")
        self.norm_scale, self.norm_bias = ones(*lead, d, axes=embed), zeros(*lead, d, axes=embed)
        setattr(self, f"{self.first}_kernel", normal(rngs, *lead, d, *width, axes=(*embed, *inner_names)))
        setattr(self, f"{self.first}_bias", zeros(*lead, *width, axes=(*names, *inner_names)))
        self.out_kernel = normal(rngs, *lead, inner, d, std=out_std, axes=(*names, self.inner, "embed"))
        self.out_bias = zeros(*lead, d, axes=embed)

    def shards(self) -> SublayerWeights:
        """The folded weights, as far as they are on this device."""
        kernel, bias = getattr(self, f"{self.first}_kernel"), getattr(self, f"{self.first}_bias")
        lead = self.norm_scale.ndim  # axes before the map's width
        flat = kernel[...].reshape(*kernel.shape[:lead], -1)
        flat, gain = fold(self.norm_scale[...], self.norm_bias[...], flat)
        gain = sum_of_parts(gain, kernel.axes, kernel.whole, kernel.shape, "embed")
        return SublayerWeights(flat, bias[...].reshape(gain.shape) + gain, self.out_kernel[...], self.out_bias[...])

    def gathered(self, shards: SublayerWeights) -> SublayerWeights:
        """What a device computes with, from its shards of all modules or of one of them."""
        stack = self.norm_scale.axes[:-1] if shards.first_bias.ndim > 1 else ()
        lead = self.norm_scale.whole[: len(stack)]
        d, dtype = self.config.d_model, self.config.dtype
        inner = self.out_kernel.whole[-2]
        # Of attention the first map may be the part for values alone.
        width = inner * (shards.first_kernel.shape[-1] // shards.last_kernel.shape[-2])

        def use(x: jax.Array, dtype: str = "float32", **axes: int) -> jax.Array:
            return gather(x, (*stack, *axes), (*lead, *axes.values()), dtype)

        return SublayerWeights(
            use(shards.first_kernel, dtype, embed=d, **{self.inner: width}),
            use(shards.first_bias, **{self.inner: width}),
            use(shards.last_kernel, dtype, **{self.inner: inner}, embed=d),
            # Devices that divide the inner axis add up their results: each has its share of the bias.
            use(shards.last_bias, embed=d) / size("tensor"),
        )

    def weights(self) -> SublayerWeights:
        """The folded weights that a device computes with."""
        return self.gathered(self.shards())


class Attention(Sublayer):
    """Layer norm, QKV projection [D, 3, D] (query, key, value), output projection [D, D]."""

    first, inner = "qkv", "heads"

    def __init__(self, config: ModelConfig, *, stack: dict[str, int] | None = None, out_std: float, rngs: nnx.Rngs):
        super().__init__(config, (3, config.d_model), config.d_model, stack or {}, out_std, rngs)

    def values(self, shards: SublayerWeights) -> SublayerWeights:
        """The shards without queries and keys: the first map is to values."""
        own = shards.last_kernel.shape[-2]  # of the heads on this device
        return shards._replace(
            first_kernel=shards.first_kernel[..., 2 * own :], first_bias=shards.first_bias[..., 2 * own :]
        )

    def queries(self, shards: SublayerWeights) -> Projection:
        """The maps of all modules to queries and keys, side by side, which every device has: [N, D, 2D], [N, 2D]."""
        own, d, n = shards.last_kernel.shape[-2], self.config.d_model, self.norm_scale.whole[0]
        kernel, bias = shards.first_kernel[..., : 2 * own], shards.first_bias[..., : 2 * own]
        return Projection(
            gather(kernel, ("all modules", "embed", self.inner), (n, d, 2 * d), self.config.dtype),
            gather(bias, ("all modules", self.inner), (n, 2 * d)),
        )


class FFN(Sublayer):
    """Layer norm, inner projection [D, F], activation, output projection [F, D]. Of a stack F is the modules' width."""

    first, inner = "in", "mlp"

    def __init__(self, config: ModelConfig, *, stack: dict[str, int] | None = None, out_std: float, rngs: nnx.Rngs):
        width = config.module_width if stack else config.inner_width
        super().__init__(config, (width,), width, stack or {}, out_std, rngs)


def ffn(
    linear: Linear, rows: jax.Array, multiplier: jax.Array | None, weights: SublayerWeights, *, activation: str
) -> jax.Array:
    """An FFN (GPT-2's MLP) on normalised rows [P, D], its result [P, D] times `multiplier` [P, 1] float32 or nothing.

    linear: the product that it is written with. weights: of one module, or of as many as `linear` takes at once.
    """
    inner = save(linear(rows, weights.first_kernel, weights.first_bias))
    return linear(ACTIVATIONS[activation](inner), weights.last_kernel, weights.last_bias, multiplier)


def plain_attention(
    weights: SublayerWeights, x: jax.Array, view: View, config: ModelConfig, *, key: jax.Array | None, cache: KV | None
) -> tuple[jax.Array, KV | None]:
    """The attention sublayer of a GPT-2 layer: its contribution to the residual stream x [B, L, D], and the cache.

    x: in the compute dtype. key: draws dropout; None goes without.
    """
    check_array("plain_attention: x", x, (None, None, config.d_model), config.dtype)
    probability_key, output_key = (None, None) if key is None else jax.random.split(key)
    rows = normalise(x, config.layer_norm_epsilon).reshape(-1, x.shape[-1])
    rows = gather_tokens(rows, "tensor")
    qkv = save(linear(rows, weights.first_kernel, weights.first_bias))
    output, cache = attend(qkv.reshape(-1, x.shape[1], qkv.shape[1]), view, config, key=probability_key, cache=cache)
    output = linear(output.reshape(rows.shape[0], -1), weights.last_kernel, weights.last_bias)
    output = save(scatter_tokens(output, "tensor"))
    return dropout(output.reshape(x.shape), config.dropout.residual, output_key), cache


def plain_ffn(weights: SublayerWeights, x: jax.Array, config: ModelConfig, *, key: jax.Array | None) -> jax.Array:
    """The feed-forward sublayer of a GPT-2 layer: its contribution to the residual stream x [B, L, D].

    x: in the compute dtype. key: draws dropout; None goes without.
    """
    check_array("plain_ffn: x", x, (None, None, config.d_model), config.dtype)
    rows = normalise(x, config.layer_norm_epsilon).reshape(-1, x.shape[-1])
    output = ffn(linear, gather_tokens(rows, "tensor"), None, weights, activation=config.activation)
    output = scatter_tokens(output, "tensor")
    return dropout(output.reshape(x.shape), config.dropout.residual, key)


class LayerWeights(NamedTuple):
    """A layer's weights ready for use."""

    attention: SublayerWeights
    ffn: SublayerWeights


class Layer(nnx.Module):
    """An anchor: a plain pre-norm GPT-2 layer."""

    def __init__(self, config: ModelConfig, *, out_std: float, rngs: nnx.Rngs):
        self.config = config
        self.attention = Attention(config, out_std=out_std, rngs=rngs)
        self.ffn = FFN(config, out_std=out_std, rngs=rngs)

    def weights(self) -> LayerWeights:
        """Both sublayers' folded weights."""
        return LayerWeights(self.attention.weights(), self.ffn.weights())

    def __call__(
        self,
        x: jax.Array,
        view: View,
        *,
        key: jax.Array | None = None,
        cache: KV | None = None,
        weights: LayerWeights | None = None,
    ) -> tuple[jax.Array, KV | None]:
        """x [B, L, D] -> (x after the layer, the cache). weights: those of `weights()`, made before."""
        attention_key, ffn_key = (None, None) if key is None else jax.random.split(key)
        attention = self.attention.weights() if weights is None else weights.attention
        y, cache = plain_attention(attention, x, view, self.config, key=attention_key, cache=cache)
        x = x + y
        ffn = self.ffn.weights() if weights is None else weights.ffn
        return x + plain_ffn(ffn, x, self.config, key=ffn_key), cache
