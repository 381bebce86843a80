"""Routers with a recurrent state [T, R] over the assembly steps."""

from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from mom_jax.checks import check_array
from mom_jax.config import ModelConfig, Side
from mom_jax.layers import normal, zeros
from mom_jax.remat import save
from mom_jax.routers.registry import register
from mom_jax.routers.router import Router, RouterStep


class Recurrent(Router):
    """A state that starts at 0 and is scored after each step."""

    def initial_state(self, tokens: int) -> jax.Array:
        """[T, R] zeros."""
        return jnp.zeros((tokens, self.config.router.dim), jnp.float32)

    def __call__(self, x_TxD: jax.Array, state: jax.Array, step: RouterStep) -> tuple[jax.Array, jax.Array]:
        check_array("Router: state_TxR", state, (x_TxD.shape[0], self.config.router.dim), jnp.float32)
        state = self._next(x_TxD, state, step)
        return self._scores(state), state

    def _next(self, x: jax.Array, h: jax.Array, step: RouterStep) -> jax.Array:
        raise NotImplementedError


@register("gru")
class Gru(Recurrent):
    """PyTorch's GRU cell (the paper's router), gates in the order r, z, n (, p)."""

    computed = ("input_kernel", "state_kernel")
    gates: ClassVar[int] = 3

    def __init__(self, config: ModelConfig, side: Side, *, rngs: nnx.Rngs):
        super().__init__(config, side, rngs=rngs)
        d, r = config.d_model, config.router.dim
        self.input_kernel = normal(rngs, d, self.gates * r, axes=("width", "gates"))
        self.input_bias = zeros(self.gates * r, axes=("gates",))
        self.state_kernel = normal(rngs, r, self.gates * r, axes=("width", "gates"))
        self.state_bias = zeros(self.gates * r, axes=("gates",))
        self._make_scores(r, rngs)

    def _next(self, x: jax.Array, h: jax.Array, step: RouterStep) -> jax.Array:
        r = self.config.router.dim
        inputs = jnp.split(self._project(x, self.input_kernel[...], self.input_bias[...]), self.gates, -1)
        # Two products: the backward pass keeps the first one's sums and makes the second again, the cheaper half of it.
        kernel, bias = self.state_kernel[...], self.state_bias[...]
        states = jnp.split(self._project(h, kernel[:, : 2 * r], bias[: 2 * r]), 2, -1)
        states += jnp.split(self._project(h, kernel[:, 2 * r :], bias[2 * r :]), self.gates - 2, -1)
        sums = [save(i + s) for i, s in zip(inputs, states, strict=True)]
        z, n = jax.nn.sigmoid(sums[1]), self._candidate(inputs, states, sums)
        return self._mixed(n + z * (h - n), sums, step)

    def _candidate(self, inputs: list[jax.Array], states: list[jax.Array], sums: list[jax.Array]) -> jax.Array:
        return jnp.tanh(save(inputs[2]) + jax.nn.sigmoid(sums[0]) * states[2])

    def _mixed(self, h: jax.Array, sums: list[jax.Array], step: RouterStep) -> jax.Array:
        return h


@register("gru_dev")
class GruDev(Gru):
    """A GRU whose candidate does not read the state."""

    def _candidate(self, inputs: list[jax.Array], states: list[jax.Array], sums: list[jax.Array]) -> jax.Array:
        return jnp.tanh(save(inputs[2]))


@register("gru_random")
class GruRandom(Gru):
    """A GRU with a fourth gate that mixes uniform noise into the state: given, drawn, or its mean."""

    random = True
    gates = 4

    def _mixed(self, h: jax.Array, sums: list[jax.Array], step: RouterStep) -> jax.Array:
        noise: jax.Array | float = 0.5
        if step.noise is not None:
            noise = step.noise.reshape(h.shape)
        elif step.key is not None:
            noise = jax.random.uniform(step.key, h.shape)
        p = jax.nn.sigmoid(sums[3])
        return p * h + (1 - p) * noise


@register("mingru")
class MinGru(Recurrent):
    """The minimal GRU (Feng et al., arXiv 2410.01201, section 3.1): gate and candidate read the input only.

    Without the log-space form that its parallel training needs: a step's input depends on the choices before it.
    """

    computed = ("input_kernel",)

    def __init__(self, config: ModelConfig, side: Side, *, rngs: nnx.Rngs):
        super().__init__(config, side, rngs=rngs)
        d, r = config.d_model, config.router.dim
        self.input_kernel = normal(rngs, d, 2 * r, axes=("width", "gates"))
        self.input_bias = zeros(2 * r, axes=("gates",))
        self._make_scores(r, rngs)

    def _next(self, x: jax.Array, h: jax.Array, step: RouterStep) -> jax.Array:
        gate, candidate = jnp.split(save(self._project(x, self.input_kernel[...], self.input_bias[...])), 2, -1)
        return h + jax.nn.sigmoid(gate) * (candidate - h)


@register("hierarchical")
class Hierarchical(Gru):
    """A GRU that decides first whether to take SKIP, and then which of the other classes.

    Its logits are log-probabilities, times the temperature that softmax scoring divides by: p(SKIP) is the sigmoid of
    the last score, and class m has (1 - p(SKIP)) · softmax over the others.
    """

    prunable = False  # a module that goes leaves its share to the others, but none of it to SKIP

    def _scores(self, hidden: jax.Array) -> jax.Array:
        scores = super()._scores(hidden) / self.config.router.temperature
        skip, others = scores[:, -1:], scores[:, :-1]
        taken = jax.nn.log_sigmoid(-skip) + jax.nn.log_softmax(others, -1)
        return jnp.concatenate([taken, jax.nn.log_sigmoid(skip)], -1) * self.config.router.temperature
