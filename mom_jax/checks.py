"""Checks of arrays: of shapes and dtypes while a program is traced, and of values inside compiled steps.

The first kind costs nothing when the program runs. The second is for debugging (`--debug-checks`): counts of what is
wrong, which add up over steps, micro-batches and devices like everything else that a pass reports.
"""

from collections.abc import Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp

from mom_jax.config import ModelConfig, Side

TOLERANCE = 1e-3  # how far a sum of probabilities may be from 1, in float32


def check_array(name: str, x: Any, shape: tuple[int | None, ...], dtype: Any = None) -> None:
    """Raises AssertionError, one line with `name`, unless `x` has this shape (None: any size) and dtype.

    dtype: a type, or `int` or `float` for any of that kind.
    """
    chex.assert_shape(x, shape, custom_message=name)
    if dtype is not None:
        chex.assert_type(x, dtype, custom_message=name)


def routing_faults(
    logits_TxC: jax.Array,
    reported_TxC: jax.Array,
    index_TxK: jax.Array,
    weight_TxK: jax.Array,
    plans: Sequence[Any],
    config: ModelConfig,
    side: Side,
) -> dict[str, jax.Array]:
    """What is wrong with a side's routing at one step: by a sentence, how often, int32 scalars that should be 0.

    plans: `dispatch.Plan`s, of the same choices, or of those that others have sent.
    """
    classes = config.classes(side)
    faults = {
        "router logits are not finite": ~jnp.isfinite(logits_TxC),
        "weights of choices are not finite": ~jnp.isfinite(weight_TxK),
        # C itself stands for a choice that the prior forbids.
        f"choices are outside of the {classes} classes": (index_TxK < 0) | (index_TxK > classes),
        "choices have another row than the plan says": sum(plan_faults(plan).sum() for plan in plans),
    }
    if config.router.scoring != "raw":
        off = jnp.abs(reported_TxC.sum(-1) - 1) > TOLERANCE
        faults["router probabilities do not sum to 1"] = off | ~jnp.isfinite(reported_TxC).all(-1)
    return {name: jnp.sum(wrong).astype(jnp.int32) for name, wrong in faults.items()}


def plan_faults(plan: Any) -> jax.Array:
    """For each choice of a plan [T, K] whether its row is not its own: rows and choices must be inverse to each other,
    the rows of a module must be as many as the plan's sizes say, and they must belong to that module."""
    rows = plan.choice_P.shape[0]
    flat = jnp.arange(plan.slot_TxK.size, dtype=jnp.int32).reshape(plan.slot_TxK.shape)
    row = jnp.minimum(plan.slot_TxK, rows - 1)
    wrong = plan.has_row & (plan.choice_P[row] != flat)
    used = (plan.choice_P < plan.slot_TxK.size).astype(jnp.int32)
    counted = jnp.zeros_like(plan.sizes_N).at[plan.module_P].add(used, mode="drop")
    return wrong | (used.sum() != plan.has_row.sum()) | (counted != plan.sizes_N).any()


def not_finite(x: Any) -> jax.Array:
    """How many numbers of a tree of arrays are infinite or NaN, int32."""
    return sum((~jnp.isfinite(leaf)).sum().astype(jnp.int32) for leaf in jax.tree.leaves(x)) + jnp.int32(0)
