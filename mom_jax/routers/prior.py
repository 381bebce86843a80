"""The prior on the routers' logits: which class may or should serve which step."""

import jax
import jax.numpy as jnp

from mom_jax.config import ModelConfig, Side


def own_classes(config: ModelConfig, side: Side) -> jax.Array:
    """Which classes are the modules of its own of each step, bool [H, C]: one, or, of modules that are narrower than a
    layer's FFN, all that its layer is cut into. A step may have none."""
    own, c = jnp.array(config.schedule(side))[:, None], jnp.arange(config.classes(side))[None]
    return (c // config.grain(side) == own) & (c < config.modules(side))


def favoured_classes(config: ModelConfig, side: Side) -> jax.Array:
    """Which class a preference is for at each step, bool [H, C]: what `own_classes` says, or SKIP where it is none."""
    own = own_classes(config, side)
    return own | (_is_skip(config, side) & ~own.any(-1, keepdims=True))


def prior_table(config: ModelConfig, side: Side, step: jax.Array | int | None = None) -> jax.Array | None:
    """The side's prior on the router's logits, [H, C] float32, after `step` training steps; None where all is free.

    Without `step` the preference has its full strength.
    """
    choice, classes = getattr(config, side), config.classes(side)
    skip = _is_skip(config, side)
    if choice.choice == "ordered_or_skip":
        return jnp.where(own_classes(config, side) | skip, 0.0, -jnp.inf)
    table = None if choice.prior is None else jnp.array(choice.prior, jnp.float32)
    if choice.preference or choice.skip_preference:
        rest = jnp.float32(1)
        if choice.anneal_steps and step is not None:
            rest = choice.remaining(step, classes)
        favoured = favoured_classes(config, side)
        preferred = jnp.where(favoured, rest * choice.preference, jnp.where(skip, rest * choice.skip_preference, 0.0))
        table = preferred if table is None else table + preferred
    return table


def _is_skip(config: ModelConfig, side: Side) -> jax.Array:
    """Which class is SKIP, bool [1, C]."""
    classes = config.classes(side)
    return (jnp.arange(classes)[None] == classes - 1) & config.skip


def unless_left(left_T: jax.Array, prior_C: jax.Array | None, classes: int) -> jax.Array:
    """The prior of every token, [T, C] float32: SKIP, the last class, and nothing else for those that have left."""
    skip = jnp.arange(classes, dtype=jnp.int32) == classes - 1
    rest = jnp.zeros(classes) if prior_C is None else prior_C
    return jnp.where(left_T[:, None], jnp.where(skip, 0.0, -jnp.inf)[None], rest[None])
