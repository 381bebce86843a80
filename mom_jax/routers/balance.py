"""Balance without a loss: a bias on what ranks, adjusted after each step (Wang et al., arXiv 2408.15664).

It has no gradient and changes no weight: modules that got more than their share rank lower at the next step. The paper
adds it to probabilities; here it is in logits after the temperature, whatever the scoring, as a prior is.

SKIP and null classes have no bias, and are not counted: how much of the depth a token uses is for the loss to decide,
and what computes nothing has no load. Biases are kept centred over the modules, so that as a whole they do not favour
modules over SKIP. Nor is there any for classes that the side's prior forbids at every step.
"""

import jax
import jax.numpy as jnp

from mom_jax.config import ModelConfig, Side
from mom_jax.routers.prior import prior_table


def has_balance_bias(config: ModelConfig, side: Side) -> bool:
    """Whether the side's routers have a `balance_bias`: where tokens choose among modules at a step."""
    return config.balance.bias_rate > 0 and config.kind(side) == "routed" and getattr(config, side).choice == "free"


def adjusted(bias_SxC: jax.Array, choices_SxC: jax.Array, config: ModelConfig, side: Side) -> jax.Array:
    """The biases of all chunks after a step in which a class was chosen so many times: plus or minus the rate for
    modules with less or more than the mean load of their chunk's."""
    table = prior_table(config, side)
    counts = jnp.arange(config.classes(side), dtype=jnp.int32) < config.modules(side)
    if table is not None:
        counts &= (table > -jnp.inf).any(0)
    number = jnp.maximum(counts.sum().astype(jnp.float32), 1)

    def mean(values_SxC: jax.Array) -> jax.Array:
        return jnp.where(counts[None], values_SxC, 0.0).sum(-1, keepdims=True) / number

    moved = bias_SxC + config.balance.bias_rate * jnp.sign(mean(choices_SxC) - choices_SxC)
    return jnp.where(counts[None], moved - mean(moved), 0.0)
