"""The optimizer: AdamW with clipping, a schedule, and factors and freezing by a parameter's path."""

import fnmatch
from collections.abc import Iterable
from typing import Any

import jax
import optax

from mom_jax.fields import ConfigError
from train.config import OptimConfig

ROUTERS = "*_router/*"


def path_name(path: tuple) -> str:
    """`chunks/0/attention/qkv_kernel` for a path of keys as JAX gives it."""
    return "/".join(str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key)))) for key in path)


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


def check_patterns(optim: OptimConfig, names: Iterable[str], where: str) -> None:
    """Raises ConfigError, naming a field of `where`, for a pattern that matches none of the parameters' `names`."""
    names = list(names)
    for field, patterns in (("freeze", optim.freeze), ("multipliers", tuple(p for p, _ in optim.multipliers))):
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
    """AdamW as in the paper's recipe, for a phase of `steps` steps."""
    return with_schedule(optim, make_schedule(optim, steps))


def with_schedule(optim: OptimConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    """The same with another schedule of the learning rate than `optim` names. Frozen parameters have no moments and do
    not count in the clipped norm."""

    def named(function: Any) -> Any:
        return lambda tree: jax.tree_util.tree_map_with_path(lambda path, leaf: function(path_name(path)), tree)

    def scale(updates: Any, params: Any) -> Any:
        return jax.tree.map(lambda u, f: u * f, updates, named(lambda name: factor(name, optim))(updates))

    trained = optax.chain(
        optax.clip_by_global_norm(optim.clip_norm),
        optax.scale_by_adam(optim.beta1, optim.beta2, optim.epsilon),
        optax.add_decayed_weights(optim.weight_decay, named(is_decayed)),
        optax.stateless(scale),
        optax.scale_by_learning_rate(schedule),
    )
    if not optim.freeze:
        return trained
    labels = named(lambda name: "frozen" if factor(name, optim) == 0 else "trained")
    return optax.partition({"trained": trained, "frozen": optax.set_to_zero()}, labels)
