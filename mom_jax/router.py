"""Routers: scores for every token and class, and what is chosen by them.

Scores and choices are apart from the data movement that they cause (mom_jax/dispatch).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from mom_jax.checks import check_array
from mom_jax.config import ModelConfig, Side
from mom_jax.layers import normal, zeros
from mom_jax.products import product
from mom_jax.remat import save

GATES = {"gru": 3, "gru_dev": 3, "gru_random": 4}


class Selection(NamedTuple):
    """What every token takes, best first. A class without a module (SKIP, a null class) contributes nothing.

    index_TxK: int32 classes; a choice that the prior forbids is C, which is no class. weight_TxK: float32.
    """

    index_TxK: jax.Array
    weight_TxK: jax.Array


class Scores(NamedTuple):
    """logits_TxC: before the prior, over the temperature. reported_TxC: with the prior and, where scoring is softmax,
    as probabilities: what the choice and the balance loss see. Both float32."""

    logits_TxC: jax.Array
    reported_TxC: jax.Array


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


def select(
    logits_TxC: jax.Array, config: ModelConfig, side: Side, prior_C: jax.Array | None = None
) -> tuple[Selection, Scores]:
    """The choices of every token from a router's logits (paper section 3.2; official mot_gpt's routing function).

    With softmax scoring p = softmax(logits / temperature + prior) is reported, ranked and weighs. With raw scoring
    logits + prior are reported and ranked, and the raw logits weigh. A choice with a prior of -inf is made a null.
    Logits, prior, weights and scores are float32. Raises AssertionError for arrays of other shapes or dtypes.
    """
    check_array("select: logits_TxC", logits_TxC, (None, config.classes(side)), jnp.float32)
    if prior_C is not None:
        check_array("select: prior_C", prior_C, (config.classes(side),), jnp.float32)
    router = config.router
    softmax = router.scoring == "softmax"
    logits = logits_TxC / router.temperature if softmax else logits_TxC
    ranked = logits if prior_C is None else logits + prior_C[None]
    scores = jax.nn.softmax(ranked, -1) if softmax else ranked
    if router.all_modules:
        tokens, modules = logits.shape[0], config.modules(side)
        index = jnp.broadcast_to(jnp.arange(modules, dtype=jnp.int32)[None], (tokens, modules))
        weight = (scores if softmax else logits)[:, :modules]
    else:
        # Kept for the backward pass, which would sort again, and indexed by comparing, whose gradient scatters nothing.
        index = save(jax.lax.top_k(jax.lax.stop_gradient(scores), config.top_k)[1])
        chosen = index[:, :, None] == jnp.arange(scores.shape[1], dtype=index.dtype)[None, None]
        weight = jnp.where(chosen, (logits if config.weights == "raw" else scores)[:, None], 0.0).sum(-1)
        if config.weights == "renormalised":
            weight = weight / weight.sum(-1, keepdims=True)
    if prior_C is not None:
        forbidden = jnp.isneginf(prior_C)[index]
        index = jnp.where(forbidden, prior_C.shape[0], index)
        weight = jnp.where(forbidden, 0.0, weight)
    return Selection(index, weight), Scores(logits, scores)


@jax.custom_vjp
def straight_through(weight: jax.Array) -> jax.Array:
    """sign(weight); backward, the incoming gradient clamped to [-1, 1], wherever the weight lies."""
    return jnp.sign(weight)


straight_through.defvjp(lambda weight: (jnp.sign(weight), None), lambda _, gradient: (jnp.clip(gradient, -1, 1),))


def prior_table(config: ModelConfig, side: Side, step: jax.Array | int | None = None) -> jax.Array | None:
    """The side's prior on the router's logits, [H, C] float32, after `step` training steps; None where all is free.

    Without `step` the preference has its full strength.
    """
    choice, modules, classes = getattr(config, side), config.modules(side), config.classes(side)
    h, c = jnp.arange(config.num_steps)[:, None], jnp.arange(classes)[None]
    diagonal = (c == h) & (c < modules)
    skip = (c == classes - 1) & config.skip
    if choice.choice == "ordered_or_skip":
        return jnp.where(diagonal | skip, 0.0, -jnp.inf)
    table = None if choice.prior is None else jnp.array(choice.prior, jnp.float32)
    if choice.preference or choice.skip_preference:
        rest = jnp.float32(1)
        if choice.anneal_steps and step is not None:
            rest = choice.remaining(step, classes)
        own = diagonal | (skip & (h >= modules))
        preferred = jnp.where(own, rest * choice.preference, jnp.where(skip, rest * choice.skip_preference, 0.0))
        table = preferred if table is None else table + preferred
    return table
