"""The routes of captured tokens."""

import dataclasses

import numpy as np

from mom_jax.config import Side


@dataclasses.dataclass(frozen=True)
class SideRoutes:
    """index: [S·H, T, K] int. weight: [S·H, T, K] float32. modules: N."""

    index: np.ndarray
    weight: np.ndarray
    modules: int


@dataclasses.dataclass(frozen=True)
class Routes:
    """ids_T, position_T, window_T: int32. loss_T: float32, nats of predicting the next token, NaN where there is none."""

    ids_T: np.ndarray
    position_T: np.ndarray
    window_T: np.ndarray
    loss_T: np.ndarray
    sides: dict[Side, SideRoutes]
