"""What tokens chose at the analyses of a phase, kept in the run's folder: a run that was interrupted between two of
them counts the choices that changed as if it had not been."""

import contextlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mom_jax.config import Side
from train.checkpoints.locate import FOLDER as CHECKPOINTS
from train.checkpoints.steps import steps
from train.files import read_bytes, write_whole
from train.reporting.routes import FOLDER

Tops = Mapping[Side, np.ndarray]  # by side the best choices [S·H, T]


def keep(run: Path, phase: str, step: int, tops: Tops) -> None:
    """Writes the choices after `step`, and deletes those that no checkpoint of the phase goes back to. Where that
    cannot be written it is left out."""
    data = io.BytesIO()
    arrays: dict[str, Any] = dict(tops.items())
    np.savez_compressed(data, **arrays)
    with contextlib.suppress(OSError):
        (run / FOLDER).mkdir(parents=True, exist_ok=True)
        write_whole(_file(run, phase, step), data.getvalue())
        named = (file.stem.rpartition("-") for file in (run / FOLDER).glob("*.npz"))
        there = [int(end) for name, _, end in named if name == phase and end.isdecimal()]
        oldest = min(steps(run / CHECKPOINTS / phase), default=0)
        needed = max((other for other in there if other <= oldest), default=0)
        for other in there:
            if other < needed:
                _file(run, phase, other).unlink()


def kept(run: Path, phase: str, step: int, like: Tops) -> Tops | None:
    """What was kept after `step`, with the sides and shapes of `like`; None where there is nothing, or not that."""
    file = _file(run, phase, step)
    try:
        with np.load(io.BytesIO(read_bytes(file, str(file))), allow_pickle=False) as found:
            tops = {side: found[side] for side in like}
    except Exception:  # there is none, or whatever NumPy makes of a damaged one
        return None
    return tops if all(tops[side].shape == like[side].shape for side in like) else None


def _file(run: Path, phase: str, step: int) -> Path:
    return run / FOLDER / f"{phase}-{step}.npz"
