"""Losses from sums. Every sum adds up over micro-batches, so that an accumulated step equals the whole batch's.

The balance loss is a product of means and does not add up itself: its factors do (mom_jax/routing.py).
"""

import dataclasses

import jax
import jax.numpy as jnp

from mom_jax.checks import check_array
from mom_jax.config import ModelConfig
from mom_jax.losses.chunked import linear_cross_entropy
from mom_jax.losses.distillation import distilled_cross_entropy
from mom_jax.model import Output
from mom_jax.routing import Routing, SideStats

IGNORE = -100


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LossSums:
    """nll: the sum of -log p over the labels that count, nats. count: how many. routing: the routers' sums. faults: by
    name how often each was seen, [S, H] int32, where a pass was asked for them. objective, kl: with a teacher what is
    learnt in the place of `nll`, and the divergence from it; see `distilled_cross_entropy`."""

    nll: jax.Array
    count: jax.Array
    routing: Routing
    faults: dict[str, jax.Array] = dataclasses.field(default_factory=dict)
    objective: jax.Array | None = None
    kl: jax.Array | None = None

    @property
    def task(self) -> jax.Array:
        """What is learnt, the routers' losses aside."""
        return self.nll if self.objective is None else self.objective


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Losses:
    """total = loss + balance.weight · balance + z_loss · z + capacity_loss · capacity. Scalars, float32, nats.

    With a teacher `loss` is the cross entropy all the same, `distill` the divergence from the teacher, and in `total`
    stands the mean of `LossSums.objective` in the place of `loss`.
    """

    total: jax.Array
    loss: jax.Array
    balance: jax.Array
    z: jax.Array
    capacity: jax.Array
    distill: jax.Array | None = None


def cross_entropy(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(sum of -log p(label), number of labels) of logits [..., V] and labels [...]; labels of -100 do not count.

    labels: int32. Both results are float32, the first in nats.
    """
    check_array("cross_entropy: labels", labels, logits.shape[:-1], int)
    real = labels != IGNORE
    logits = logits.astype(jnp.float32)
    label = jnp.take_along_axis(logits, jnp.where(real, labels, 0)[..., None], -1)[..., 0]
    nll = jnp.where(real, jax.nn.logsumexp(logits, -1) - label, 0.0)
    return nll.sum(), real.sum().astype(jnp.float32)


def next_token(output: Output, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(sum of -log p(label), number of labels) of a model's output against labels [B, L] one token on: position l
    predicts label l + 1; labels of -100 do not count. The logits of all tokens never exist at once.

    labels: int32. Both results are float32, the first in nats.
    """
    check_array("next_token: labels", labels, output.hidden.shape[:2], int)
    labels = _one_on(labels)
    nll = linear_cross_entropy(output.hidden, output.unembedding, labels)
    return nll, (labels != IGNORE).sum().astype(jnp.float32)


def distilled_next_token(
    output: Output, teacher: Output, labels: jax.Array, weight: float, temperature: float
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """(objective, nll, kl, number of labels): the same with a teacher's output for the same tokens; see
    `distilled_cross_entropy`."""
    check_array("distilled_next_token: labels", labels, output.hidden.shape[:2], int)
    labels = _one_on(labels)
    student, other = ((model.hidden, model.unembedding) for model in (output, teacher))
    objective, nll, kl = distilled_cross_entropy(*student, *other, labels, weight, temperature)
    return objective, nll, kl, (labels != IGNORE).sum().astype(jnp.float32)


def _one_on(labels: jax.Array) -> jax.Array:
    return jnp.pad(labels[:, 1:], ((0, 0), (0, 1)), constant_values=IGNORE)


def _balance(probability_C: jax.Array, top1_C: jax.Array, tokens: jax.Array) -> jax.Array:
    """C·Σ f_i·P_i with f and P from sums over `tokens`; arrays [..., C] and [...]."""
    tokens = jnp.maximum(tokens, 1)[..., None]
    return probability_C.shape[-1] * (jax.lax.stop_gradient(top1_C / tokens) * (probability_C / tokens)).sum(-1)


def balance_loss(routing: Routing, config: ModelConfig) -> jax.Array:
    """The load-balancing loss of both sides (paper section 3.3), about 2 when balanced; 0 where nothing is routed."""

    def of(stats: SideStats) -> jax.Array:
        if config.balance.kind == "depthwise":
            return _balance(stats.probability_C, stats.top1_C, stats.tokens).mean()
        return _balance(stats.probability_C.sum((0, 1)), stats.top1_C.sum((0, 1)), stats.tokens.sum())

    sides = routing.sides()
    if config.balance.needs_routed_attention and "attention" not in sides:
        return jnp.zeros((), jnp.float32)
    return sum((of(stats) for stats in sides.values()), start=jnp.zeros((), jnp.float32))


def z_loss(routing: Routing) -> jax.Array:
    """The mean of logsumexp(logits)² over tokens and steps, both sides added (ST-MoE, arXiv 2202.08906, eq. 5)."""
    return _mean(routing, "z")


def capacity_loss(routing: Routing) -> jax.Array:
    """How well tokens tell by themselves whether they are within a capacity: the mean of -log p over tokens and steps,
    both sides added (mixture-of-depths, arXiv 2404.02258, section 3.5); 0 without a capacity."""
    return _mean(routing, "within")


def _mean(routing: Routing, name: str) -> jax.Array:
    """The mean of a sum over tokens and steps, both sides added, as far as they have it."""
    sums = ((getattr(stats, name), stats.tokens) for stats in routing.sides().values())
    terms = (value.sum() / jnp.maximum(tokens.sum(), 1) for value, tokens in sums if value is not None)
    return sum(terms, start=jnp.zeros((), jnp.float32))


def finish(sums: LossSums, config: ModelConfig) -> Losses:
    """The losses of a whole batch from its sums."""
    count = jnp.maximum(sums.count, 1)
    balance, z = balance_loss(sums.routing, config), z_loss(sums.routing)
    capacity = capacity_loss(sums.routing)
    total = sums.task / count + config.balance.weight * balance + config.z_loss * z + config.capacity_loss * capacity
    return Losses(total, sums.nll / count, balance, z, capacity, None if sums.kl is None else sums.kl / count)
