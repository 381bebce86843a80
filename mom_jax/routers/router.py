"""Routers: logits for every token and class, from the residual stream and, with a state, from the steps before."""

import jax
import jax.numpy as jnp
from flax import nnx

from mom_jax.checks import check_array
from mom_jax.config import ModelConfig, Side
from mom_jax.layers import normal, zeros
from mom_jax.products import product
from mom_jax.remat import save

GATES = {"gru": 3, "gru_dev": 3, "gru_random": 4}


class Router(nnx.Module):
    """Scores the classes of one side from the raw residual stream (no layer norm); shared by a chunk's steps."""

    def __init__(self, config: ModelConfig, side: Side, *, rngs: nnx.Rngs):
        self.config = config
        d, r, c = config.d_model, config.router.dim, config.classes(side)
        if config.router.kind == "mlp":
            self.hidden_kernel = normal(rngs, d, r, axes=("width", "hidden"))
            self.hidden_bias = zeros(r, axes=("hidden",))
        else:
            width = GATES[config.router.kind] * r
            self.input_kernel = normal(rngs, d, width, axes=("width", "gates"))
            self.input_bias = zeros(width, axes=("gates",))
            self.state_kernel = normal(rngs, r, width, axes=("width", "gates"))
            self.state_bias = zeros(width, axes=("gates",))
        self.score_kernel = normal(rngs, r, c, axes=("width", "classes"))
        self.score_bias = zeros(c, axes=("classes",))

    def cast(self) -> nnx.State:
        """The parameters with those matrices in the compute dtype that are multiplied in it, for many uses."""
        router = nnx.merge(*nnx.split(self))
        for name in ("hidden_kernel", "input_kernel", "state_kernel"):
            if (kernel := getattr(router, name, None)) is not None:
                setattr(router, name, kernel.replace(kernel[...].astype(self.config.dtype)))
        return nnx.state(router)

    def initial_state(self, tokens: int) -> jax.Array | None:
        """[T, R] zeros, or None for a router without state."""
        if self.config.router.kind == "mlp":
            return None
        return jnp.zeros((tokens, self.config.router.dim), jnp.float32)

    def __call__(
        self, x_TxD: jax.Array, state_TxR: jax.Array | None, noise_TxR: jax.Array | float = 0.5
    ) -> tuple[jax.Array, jax.Array | None]:
        """(logits [T, C] in float32, the next state [T, R] in float32, None for a router without one).

        x: the residual stream, in the compute dtype or float32. noise: what `gru_random` mixes in, uniform on [0, 1).
        Raises AssertionError for arrays of other shapes.
        """
        check_array("Router: x_TxD", x_TxD, (None, self.config.d_model), float)
        if self.config.router.kind != "mlp":
            check_array("Router: state_TxR", state_TxR, (x_TxD.shape[0], self.config.router.dim), jnp.float32)
        if state_TxR is None:
            hidden = jax.nn.relu(save(self._project(x_TxD, self.hidden_kernel[...], self.hidden_bias[...])))
        else:
            hidden = state_TxR = self._gru(x_TxD, state_TxR, noise_TxR)
        # The scores decide discrete choices: full float32 also where the platform's default is less.
        logits = jnp.matmul(hidden, self.score_kernel[...], precision=jax.lax.Precision.HIGHEST)
        return save(logits + self.score_bias[...][None]), state_TxR

    def _project(self, x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
        return product(x.astype(self.config.dtype), kernel) + bias[None]

    def _gru(self, x: jax.Array, h: jax.Array, noise: jax.Array | float) -> jax.Array:
        """PyTorch's GRU cell, gates in the order r, z, n (, p)."""
        kind = self.config.router.kind
        r = self.config.router.dim
        inputs = jnp.split(self._project(x, self.input_kernel[...], self.input_bias[...]), GATES[kind], -1)
        # Two products: the backward pass keeps the first one's sums and makes the second again, the cheaper half of it.
        kernel, bias = self.state_kernel[...], self.state_bias[...]
        states = jnp.split(self._project(h, kernel[:, : 2 * r], bias[: 2 * r]), 2, -1)
        states += jnp.split(self._project(h, kernel[:, 2 * r :], bias[2 * r :]), GATES[kind] - 2, -1)
        sums = [save(i + s) for i, s in zip(inputs, states, strict=True)]
        z = jax.nn.sigmoid(sums[1])
        if kind == "gru_dev":
            n = jnp.tanh(save(inputs[2]))
        else:
            n = jnp.tanh(save(inputs[2]) + jax.nn.sigmoid(sums[0]) * states[2])
        h = n + z * (h - n)
        if kind == "gru_random":
            p = jax.nn.sigmoid(sums[3])
            h = p * h + (1 - p) * noise
        return h
