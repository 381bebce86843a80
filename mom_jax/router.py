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
    as probabilities: what the choice and the balance loss see. margin_T: where the side has a capacity, by how many
    logits, prior included, each token's best module is ahead of SKIP. All float32."""

    logits_TxC: jax.Array
    reported_TxC: jax.Array
    margin_T: jax.Array | None = None


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
    logits_TxC: jax.Array,
    config: ModelConfig,
    side: Side,
    prior: jax.Array | None = None,
    rivals_BxL: jax.Array | None = None,
) -> tuple[Selection, Scores]:
    """The choices of every token from a router's logits (paper section 3.2; official mot_gpt's routing function).

    prior: [C], or [T, C] where it differs from token to token. rivals: which tokens of a row compete for the side's
    capacity, for `within_capacity`; not read without one.

    With softmax scoring p = softmax(logits / temperature + prior) is reported, ranked and weighs. With raw scoring
    logits + prior are reported and ranked, and the raw logits weigh. A choice with a prior of -inf is made a null.
    With a capacity the tokens within it rank all classes but SKIP, the others nothing but SKIP; what is reported and
    what a choice weighs does not change, renormalising apart.
    Logits, prior, weights and scores are float32. Raises AssertionError for arrays of other shapes or dtypes.
    """
    classes = config.classes(side)
    check_array("select: logits_TxC", logits_TxC, (None, classes), jnp.float32)
    if prior is not None:
        check_array("select: prior", prior, (classes,) if prior.ndim == 1 else logits_TxC.shape, jnp.float32)
    router = config.router
    softmax = router.scoring == "softmax"
    logits = logits_TxC / router.temperature if softmax else logits_TxC
    ranked = logits if prior is None else logits + (prior[None] if prior.ndim == 1 else prior)
    scores = jax.nn.softmax(ranked, -1) if softmax else ranked
    order, margin = scores, None
    if (share := getattr(config, side).capacity) is not None:
        assert rivals_BxL is not None, f"select: {side}.capacity={share} needs rivals_BxL"
        margin = ranked[:, :-1].max(-1) - ranked[:, -1]
        within = save(within_capacity(margin.reshape(rivals_BxL.shape), rivals_BxL, share).reshape(-1))
        skip = jnp.arange(classes, dtype=jnp.int32) == classes - 1
        order = jnp.where(skip[None] == within[:, None], -jnp.inf, scores)
    if router.all_modules:
        tokens, modules = logits.shape[0], config.modules(side)
        index = jnp.broadcast_to(jnp.arange(modules, dtype=jnp.int32)[None], (tokens, modules))
        weight = (scores if softmax else logits)[:, :modules]
    else:
        # Kept for the backward pass, which would sort again, and indexed by comparing, whose gradient scatters nothing.
        index = save(jax.lax.top_k(jax.lax.stop_gradient(order), config.top_k)[1])
        chosen = index[:, :, None] == jnp.arange(classes, dtype=index.dtype)[None, None]
        weight = jnp.where(chosen, (logits if config.weights == "raw" else scores)[:, None], 0.0).sum(-1)
        if margin is not None:
            index, weight = _without(jnp.isneginf(order), index, weight, classes)
        if config.weights == "renormalised":
            total = weight.sum(-1, keepdims=True)
            # Beside a SKIP that it is not allowed, a token's modules may have no probability that is a number.
            weight = weight / (total if margin is None else jnp.maximum(total, jnp.finfo(jnp.float32).tiny))
    if prior is not None:
        index, weight = _without(jnp.isneginf(prior), index, weight, classes)
    return Selection(index, weight), Scores(logits, scores, margin)


def _without(
    never: jax.Array, index_TxK: jax.Array, weight_TxK: jax.Array, classes: int
) -> tuple[jax.Array, jax.Array]:
    """The choices without those of classes that may never be chosen, bool [C] or [T, C]: these become nulls."""
    forbidden = never[index_TxK] if never.ndim == 1 else jnp.take_along_axis(never, index_TxK, -1, mode="clip")
    return jnp.where(forbidden, classes, index_TxK), jnp.where(forbidden, 0.0, weight_TxK)


def within_capacity(margin_BxL: jax.Array, rivals_BxL: jax.Array, share: float) -> jax.Array:
    """Which tokens are among the best `share` of their rivals, bool [B, L]: of n tokens round(share·n), at least one;
    of equals the earlier.

    margin: float32; a token with -inf never is, one with +inf always. rivals: int32; tokens of a row with the same
    number compete, negative ones are out of it.
    """
    mine, theirs = margin_BxL[:, :, None], margin_BxL[:, None]
    earlier = jnp.tri(margin_BxL.shape[1], k=-1, dtype=bool)[None]
    rivals = rivals_BxL[:, :, None] == rivals_BxL[:, None]
    # Compared with all: a sort would be a loop on some platforms, and know no segments.
    rank = (rivals & ((theirs > mine) | ((theirs == mine) & earlier))).sum(-1)
    room = jnp.maximum(1, jnp.round(share * rivals.sum(-1).astype(jnp.float32)).astype(jnp.int32))
    within = (rank < room) & (margin_BxL > -jnp.inf) | (margin_BxL == jnp.inf)
    return within & (rivals_BxL >= 0)


def unless_left(left_T: jax.Array, prior_C: jax.Array | None, classes: int) -> jax.Array:
    """The prior of every token, [T, C] float32: SKIP, the last class, and nothing else for those that have left."""
    skip = jnp.arange(classes, dtype=jnp.int32) == classes - 1
    rest = jnp.zeros(classes) if prior_C is None else prior_C
    return jnp.where(left_T[:, None], jnp.where(skip, 0.0, -jnp.inf)[None], rest[None])


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
    own, c = jnp.array(config.schedule(side))[:, None], jnp.arange(classes)[None]
    diagonal = (c == own) & (c < modules)
    skip = (c == classes - 1) & config.skip
    if choice.choice == "ordered_or_skip":
        return jnp.where(diagonal | skip, 0.0, -jnp.inf)
    table = None if choice.prior is None else jnp.array(choice.prior, jnp.float32)
    if choice.preference or choice.skip_preference:
        rest = jnp.float32(1)
        if choice.anneal_steps and step is not None:
            rest = choice.remaining(step, classes)
        favoured = diagonal | (skip & (own >= modules))
        preferred = jnp.where(favoured, rest * choice.preference, jnp.where(skip, rest * choice.skip_preference, 0.0))
        table = preferred if table is None else table + preferred
    return table
