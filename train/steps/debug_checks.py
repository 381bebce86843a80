"""`--debug-checks`: a step whose values are not sound ends the run, in one line that says what is wrong and where.

The counts are made inside the compiled step (mom_jax/checks.py); what is asserted of them is compiled too, by chex.
"""

import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np

from mom_jax.losses import Losses
from train.numbers import NumbersError
from train.steps.train_step import StepReport


@functools.partial(chex.chexify, async_check=False)
@jax.jit
def _assert_sound(losses: Losses, grad_norm: jax.Array, faults: dict[str, jax.Array]) -> None:
    for name, count in faults.items():
        chex.assert_trees_all_equal(count, jnp.zeros_like(count), custom_message=name)
    chex.assert_tree_all_finite((losses, grad_norm), custom_message="losses or the gradient's norm are not finite")


def check_report(report: StepReport, where: str) -> None:
    """Raises NumbersError about `debug_checks` unless all values of a step are sound. where: which step it is."""
    try:
        _assert_sound(report.losses, report.grad_norm, report.faults)
    except AssertionError as error:
        raise NumbersError(f"debug_checks: {where}: {describe(report)}") from error


def describe(report: StepReport) -> str:
    """What is wrong with a step: the first fault on the way through chunks and assembly steps, which others may follow
    from; else what is not finite of the step's results."""
    found = []
    for name, counts in jax.device_get(report.faults).items():
        if np.any(counts):
            # What is counted once for the whole step comes last.
            place = np.argwhere(counts)[0].tolist() if np.ndim(counts) else [math.inf]
            found.append((place, name.removeprefix("faults/"), int(np.sum(counts))))
    if found:
        place, name, count = min(found)
        where = f"; the first in chunk {place[0]}, assembly step {place[1]}" if len(place) == 2 else ""
        return f"{name} ({count} of them{where})"
    losses = report.losses
    values = {"loss": losses.loss, "balance loss": losses.balance, "z-loss": losses.z, "capacity loss": losses.capacity}
    values["norm of the gradient"] = report.grad_norm
    return "; ".join(f"the {name} is {float(value)}" for name, value in values.items() if not np.isfinite(value))
