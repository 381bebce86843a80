"""How results are compared: with float64 on the host, by the ratio of norms."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

ALLOWED = {"bfloat16": 1e-2, "float32": 1e-3}


def poison(megabytes: int) -> None:
    """Leaves NaN in the memory that the next call will be given, so that what a kernel does not write shows."""
    held = [jnp.full((2**23,), jnp.nan, jnp.float32) for _ in range(max(1, megabytes // 32))]
    jax.block_until_ready(held)


def error(got: Any, want: np.ndarray) -> float | None:
    """|got - want| / |want|, where the latter is 0 without dividing; None where something is not finite."""
    got = np.asarray(got, np.float64)
    if not np.isfinite(got).all():
        return None
    size = float(np.linalg.norm(want))
    return float(np.linalg.norm(got - want)) / (size or 1.0)


class Verdict:
    """The largest error of many comparisons, and those where it is larger than `allowed`."""

    def __init__(self, allowed: float):
        self.allowed, self.worst, self.wrong = allowed, 0.0, list[str]()

    def compare(self, what: str, got: Any, want: np.ndarray) -> None:
        off = error(got, want)
        if off is None:
            self.worst = float("inf")
        else:
            self.worst = max(self.worst, off)
        if off is None or off > self.allowed:
            self.wrong.append(f"{what} {'not finite' if off is None else f'{off:.2e}'}")
