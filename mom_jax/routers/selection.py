"""What is chosen by the routers' scores, and what it weighs. The data movement that follows is mom_jax/dispatch."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mom_jax.checks import check_array
from mom_jax.config import ModelConfig, Side
from mom_jax.remat import save


class Selection(NamedTuple):
    """What every token takes, best first. A class without a module (SKIP, a null class) contributes nothing.

    index_TxK: int32 classes; a choice that the prior forbids is C, which is no class. weight_TxK: float32.
    """

    index_TxK: jax.Array
    weight_TxK: jax.Array


class Scores(NamedTuple):
    """logits_TxC: before the prior, over the temperature, with the step's bias. reported_TxC: with the prior and,
    unless scoring is raw, as probabilities: what the balance loss sees. margin_T: where the side has a capacity, by how
    many logits, prior included, each token's best module is ahead of SKIP. All float32."""

    logits_TxC: jax.Array
    reported_TxC: jax.Array
    margin_T: jax.Array | None = None


def select(
    logits_TxC: jax.Array,
    config: ModelConfig,
    side: Side,
    prior: jax.Array | None = None,
    rivals_BxL: jax.Array | None = None,
    *,
    bias_C: jax.Array | None = None,
    nudge_TxC: jax.Array | None = None,
) -> tuple[Selection, Scores]:
    """The choices of every token from a router's logits (paper section 3.2; official mot_gpt's routing function).

    prior: [C], or [T, C] where it differs from token to token. rivals: which tokens of a row compete for the side's
    capacity, for `within_capacity`; not read without one. bias: learned, added to the logits after the temperature.
    nudge: added to what ranks and to nothing else, in logits; of tokens within a capacity it ranks the modules.

    With softmax scoring p = softmax(logits / temperature + bias + prior) is reported, ranked and weighs. With raw
    scoring logits + bias + prior are reported and ranked, and logits + bias weigh. With sigmoid scoring logits /
    temperature + bias + prior are ranked, their sigmoids, over the sum of all classes' (as for DeepSeek-V3's balance
    loss, arXiv 2412.19437), are reported, and sigmoid(logits / temperature + bias) weighs. A choice with a prior of
    -inf is made a null.
    With a capacity the tokens within it rank all classes but SKIP, the others nothing but SKIP; what is reported and
    what a choice weighs does not change, renormalising apart.
    Logits, prior, weights and scores are float32. Raises AssertionError for arrays of other shapes or dtypes.
    """
    classes = config.classes(side)
    check_array("select: logits_TxC", logits_TxC, (None, classes), jnp.float32)
    if prior is not None:
        check_array("select: prior", prior, (classes,) if prior.ndim == 1 else logits_TxC.shape, jnp.float32)
    router = config.router
    logits = logits_TxC if router.scoring == "raw" else logits_TxC / router.temperature
    if bias_C is not None:
        check_array("select: bias_C", bias_C, (classes,), jnp.float32)
        logits = logits + bias_C[None]
    ranked = logits if prior is None else logits + (prior[None] if prior.ndim == 1 else prior)
    scores, worth = _scores(logits, ranked, router.scoring)
    order, margin = scores if router.scoring == "softmax" else ranked, None
    if nudge_TxC is not None:
        check_array("select: nudge_TxC", nudge_TxC, logits_TxC.shape, jnp.float32)
        order = ranked + nudge_TxC
    if (share := getattr(config, side).capacity) is not None:
        assert rivals_BxL is not None, f"select: {side}.capacity={share} needs rivals_BxL"
        margin = ranked[:, :-1].max(-1) - ranked[:, -1]
        within = save(within_capacity(margin.reshape(rivals_BxL.shape), rivals_BxL, share).reshape(-1))
        skip = jnp.arange(classes, dtype=jnp.int32) == classes - 1
        order = jnp.where(skip[None] == within[:, None], -jnp.inf, order)
    if router.all_modules:
        tokens, modules = logits.shape[0], config.modules(side)
        index = jnp.broadcast_to(jnp.arange(modules, dtype=jnp.int32)[None], (tokens, modules))
        weight = worth[:, :modules]
    else:
        # Kept for the backward pass, which would sort again, and indexed by comparing, whose gradient scatters nothing.
        index = save(jax.lax.top_k(jax.lax.stop_gradient(order), config.choices(side))[1])
        chosen = index[:, :, None] == jnp.arange(classes, dtype=index.dtype)[None, None]
        weight = jnp.where(chosen, worth[:, None], 0.0).sum(-1)
        if margin is not None:
            index, weight = _without(jnp.isneginf(order), index, weight, classes)
        if config.weights(side) == "renormalised":
            total = weight.sum(-1, keepdims=True)
            # Beside a SKIP that it is not allowed, a token's modules may have no probability that is a number; and
            # sigmoids may all be 0.
            safe = margin is None and router.scoring == "softmax"
            weight = weight / (total if safe else jnp.maximum(total, jnp.finfo(jnp.float32).tiny))
    weight = weight * getattr(config, side).scale
    if prior is not None:
        index, weight = _without(jnp.isneginf(prior), index, weight, classes)
    return Selection(index, weight), Scores(logits, scores, margin)


def _scores(logits: jax.Array, ranked: jax.Array, scoring: str) -> tuple[jax.Array, jax.Array]:
    """(what is reported, what a class weighs) of logits [T, C] without and with the prior."""
    if scoring == "softmax":
        scores = jax.nn.softmax(ranked, -1)
        return scores, scores
    if scoring == "raw":
        return ranked, logits
    # Of what is forbidden nothing may be left in the sum that renormalises.
    worth = jnp.where(jnp.isneginf(ranked), 0.0, jax.nn.sigmoid(logits))
    return jax.nn.softmax(jax.nn.log_sigmoid(ranked), -1), worth


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


@jax.custom_vjp
def straight_through(weight: jax.Array) -> jax.Array:
    """sign(weight); backward, the incoming gradient clamped to [-1, 1], wherever the weight lies."""
    return jnp.sign(weight)


straight_through.defvjp(lambda weight: (jnp.sign(weight), None), lambda _, gradient: (jnp.clip(gradient, -1, 1),))
