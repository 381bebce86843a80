"""Numbers that are none: what a run does about them, and what it remembers of them."""

import dataclasses
import math
from typing import Any, Literal

from mom_jax.fields import check_types, require

FOLDER = "numbers"  # in a run's folder: the batches of steps that were refused


class NumbersError(Exception):
    """A loss, a gradient or a result that is infinite or NaN, where nothing can be done about it: one line."""

    exit_code = 3  # of the program


@dataclasses.dataclass(frozen=True)
class WatchConfig:
    """What happens to a step whose loss or gradient is no number, or far off (docs/reliability.md).

    Such an update never reaches the parameters or the optimizer. `stop` saves the state before it and the batch, and
    ends with exit code 3; `skip` goes on with the next batch; `rewind` goes back to a checkpoint and goes on behind the
    batch, so that all examples since the checkpoint are left out.

    Attributes:
        non_finite: where the loss, the gradient's norm or a parameter after the update is infinite or NaN.
        spike: where the loss or the gradient's norm is far above its running median; `log` takes the update all the
            same and says so.
        loss_factor: how many times the median the loss may be.
        gradient_factor: how many times the median the gradient's norm may be.
        window: steps that the medians are of; before there are as many nothing is a spike.
        rewind_steps: go back at least so many steps, as far as there are checkpoints.
        patience: updates refused in a row, or rewinds without getting past the place, after which the run stops.
    """

    non_finite: Literal["stop", "skip", "rewind"] = "stop"
    spike: Literal["off", "log", "stop", "skip", "rewind"] = "off"
    loss_factor: float = 2.0
    gradient_factor: float = 10.0
    window: int = 64
    rewind_steps: int = 1
    patience: int = 8

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("loss_factor", "gradient_factor"):
            require(1 < getattr(self, name) < math.inf, name, getattr(self, name), "must be above 1")
        require(2 <= self.window <= 10_000, "window", self.window, "must lie between 2 and 10000")
        for name in ("rewind_steps", "patience"):
            require(1 <= getattr(self, name) < 2**31, name, getattr(self, name), "must be at least 1")


@dataclasses.dataclass(frozen=True)
class Remembered:
    """What the watch of a phase knows after a step: a checkpoint has it, and training goes on exactly as it would have.

    Attributes:
        skipped: updates that were refused and passed over.
        rewinds: how often training went back.
        in_a_row: the last so many updates were refused.
        rewound_from: the furthest step from which training went back.
        window: loss and norm of the gradient of the last updates.
        limits: loss and norm of the gradient from which on each of the next two steps is a spike; None where there is
            no limit yet.
    """

    skipped: int = 0
    rewinds: int = 0
    in_a_row: int = 0
    rewound_from: int = 0
    window: tuple[tuple[float, float], ...] = ()
    limits: tuple[tuple[float | None, ...], ...] = ((None, None), (None, None))


WATCH = WatchConfig()


def for_json(value: Any) -> Any:
    """`value` as JSON has it: scalars and arrays of numpy and JAX become plain numbers, NaN and infinity null. What
    such a one was stands beside it in its table, as `NAME_reason`."""
    if isinstance(value, dict):
        return {key: item for name, own in value.items() for key, item in _with_reason(str(name), _python(own))}
    if isinstance(value, list | tuple):
        return [for_json(item) for item in value]
    plain = _python(value)
    if plain is not value:
        return for_json(plain)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _python(value: Any) -> Any:
    """An array or scalar of numpy or JAX as Python has it; all else as it is."""
    return value.tolist() if hasattr(value, "tolist") else value


def _with_reason(name: str, value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, float) and not math.isfinite(value):
        return [(name, None), (f"{name}_reason", str(value))]
    return [(name, for_json(value))]


def describe(**values: float) -> str:
    """`the loss is nan; the gradient's norm is inf`: those of the values that are no numbers."""
    names = {"loss": "the loss", "total": "the loss with the routers' own", "grad_norm": "the gradient's norm"}
    return "; ".join(f"{names[name]} is {value}" for name, value in values.items() if not math.isfinite(value))
