"""`--profile A:B`: a trace of some steps, written by jax.profiler into the run's folder."""

import dataclasses
from pathlib import Path
from typing import Any

import jax

from mom_jax.fields import require

FOLDER = "profile"  # in a run's folder


@dataclasses.dataclass(frozen=True)
class Profile:
    """The steps, first and last, counted over all phases, of which a trace is written."""

    first: int
    last: int


def parse_profile(text: str) -> Profile:
    """`A:B` as a `Profile`. Raises ConfigError for anything else."""
    first, _, last = text.partition(":")
    good = len(text) < 40 and first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)
    require(good, "profile", text, "must be FIRST:LAST, two step numbers from 1 on")
    return Profile(int(first), int(last))


def profile_step(profile: Profile | None, step: int, run: Path, state: Any) -> None:
    """Starts the trace before the first of its steps, and writes it before the step that follows the last.

    step: the one that comes next, counted over all phases. state: what the step before leaves, which is waited for.
    """
    if profile is None:
        return
    if step == profile.first:
        jax.profiler.start_trace(str(run / FOLDER))
    elif step == profile.last + 1:
        jax.block_until_ready(state)
        stop_profile()


def stop_profile() -> None:
    """Writes the trace, if one is being taken."""
    try:
        jax.profiler.stop_trace()
    except RuntimeError:  # none was started, or it was stopped before
        return
