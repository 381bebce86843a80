"""The optimizer: an update rule with clipping, a schedule, and factors and freezing by a parameter's path."""

import fnmatch
import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import optax

from mom_jax.fields import ConfigError
from train.config import OptimConfig
from train.steps.optimizer.names import named
from train.steps.optimizer.update_rule import update_rule

ROUTERS = "*_router/*"


def is_decayed(name: str) -> bool:
    """Weight decay is for matrices: not for biases and layer norms, which in a pool have two axes as well."""
    return not name.endswith(("bias", "scale"))


def factor(name: str, optim: OptimConfig) -> float:
    """What the learning rate is multiplied by for the parameter `name`; 0 means frozen."""
    if any(fnmatch.fnmatch(name, pattern) for pattern in optim.freeze):
        return 0.0
    for pattern, multiplier in optim.multipliers:
        if fnmatch.fnmatch(name, pattern):
            return multiplier
    return optim.router_multiplier if fnmatch.fnmatch(name, ROUTERS) else 1.0


def first_step(name: str, optim: OptimConfig) -> int:
    """How many steps the parameter `name` waits before it begins to change."""
    return next((steps for pattern, steps in optim.freeze_until if fnmatch.fnmatch(name, pattern)), 0)


def check_patterns(optim: OptimConfig, names: Iterable[str], where: str) -> None:
    """Raises ConfigError, naming a field of `where`, for a pattern that matches none of the parameters' `names`."""
    names = list(names)
    fields: dict[str, tuple[str, ...]] = {"freeze": optim.freeze}
    for field, pairs in (("multipliers", optim.multipliers), ("freeze_until", optim.freeze_until)):
        fields[field] = tuple(pattern for pattern, _ in pairs)
    for field, patterns in fields.items():
        for pattern in patterns:
            if not fnmatch.filter(names, pattern):
                groups = ", ".join(sorted({name.split("/")[0] for name in names}))
                raise ConfigError(f"{where}.{field}={pattern!r}: matches no parameter; they begin with {groups}")


def make_schedule(optim: OptimConfig, steps: int) -> optax.Schedule:
    """The learning rate over a phase of `steps` steps."""
    peak, rest = optim.learning_rate, steps - optim.warmup_steps
    if optim.schedule == "cosine":
        after = optax.cosine_decay_schedule(peak, max(1, rest), optim.final_fraction)
    elif optim.schedule == "wsd":
        decay = optax.linear_schedule(peak, peak * optim.final_fraction, optim.decay_steps)
        after = optax.join_schedules([optax.constant_schedule(peak), decay], [rest - optim.decay_steps])
    else:
        after = optax.constant_schedule(peak)
    if not optim.warmup_steps:
        return after
    # Begins at peak / warmup, not at 0: the first step learns too.
    first = peak / optim.warmup_steps
    warmup = optax.linear_schedule(first, peak, optim.warmup_steps - 1) if optim.warmup_steps > 1 else None
    return optax.join_schedules([warmup or optax.constant_schedule(peak), after], [optim.warmup_steps])


def make_optimizer(optim: OptimConfig, steps: int) -> optax.GradientTransformation:
    """The optimizer of a phase of `steps` steps."""
    return with_schedule(optim, make_schedule(optim, steps))


def with_schedule(optim: OptimConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    """The same with another schedule of the learning rate than `optim` names. Frozen parameters have no moments and do
    not count in the clipped norm. Those that wait do not count in it either, and begin with fresh moments."""

    def scale(updates: Any, params: Any) -> Any:
        return jax.tree.map(lambda u, f: u * f, updates, named(lambda name: factor(name, optim))(updates))

    def waiting(make: Callable[[], optax.GradientTransformation]) -> optax.GradientTransformation:
        """For each group of parameters that begins at a step of its own, a transformation of its own."""
        begins = sorted({0, *(steps for _, steps in optim.freeze_until)})
        if begins == [0]:
            return make()
        groups = {
            first: optax.transforms.conditionally_mask(make(), functools.partial(_begun, first)) for first in begins
        }
        return optax.partition(groups, named(lambda name: first_step(name, optim)))

    trained = optax.chain(
        *([waiting(optax.identity)] if optim.freeze_until else []),
        optax.clip_by_global_norm(optim.clip_norm),
        waiting(lambda: update_rule(optim)),
        waiting(lambda: optax.add_decayed_weights(optim.weight_decay, named(is_decayed))),
        optax.stateless(scale),
        optax.scale_by_learning_rate(schedule),
    )
    if not optim.freeze:
        return trained
    labels = named(lambda name: "frozen" if factor(name, optim) == 0 else "trained")
    return optax.partition({"trained": trained, "frozen": optax.set_to_zero()}, labels)


def _begun(first: int, step: jax.Array) -> jax.Array:
    return step >= first
