"""Routes: what each of a bounded number of tokens chose at every step, as plain arrays on the host.

>>> routes = capture(mom.parameters(model), model.config, [{"tokens": ids}])
>>> routes.sides["ffn"].index  # [S·H, T, K]
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mom_jax.analysis.observe import observe, place
from mom_jax.config import ModelConfig, Side
from mom_jax.sharding import make_mesh

LIMIT = 16384  # tokens


@dataclasses.dataclass(frozen=True)
class SideRoutes:
    """What tokens chose on one side; steps are counted through all chunks.

    index: [S·H, T, K] int32 classes, best first. A class below `modules` is a module of the step's chunk; those from
    there on are nulls, SKIP among them. weight: [S·H, T, K] float32. modules: N.
    """

    index: np.ndarray
    weight: np.ndarray
    modules: int

    @property
    def top(self) -> np.ndarray:
        """The best choice of each token at each step, [S·H, T] int32: a module, or N for all nulls alike."""
        return np.minimum(self.index[..., 0], self.modules)

    @property
    def real(self) -> np.ndarray:
        """How many modules each token takes at each step, [S·H, T] int32."""
        return (self.index < self.modules).sum(-1, dtype=np.int32)


@dataclasses.dataclass(frozen=True)
class Routes:
    """The routes of T tokens in the order of the text.

    ids: [T] int32. position: [T] int32, the place in the token's sequence, from 0. window: [T] int32, which captured
    sequence it is of, from 0; documents that are packed into one row are sequences of their own. loss: [T] float32,
    nats of predicting the next token, nan where there is none. sides: the routed ones. steps: S·H.
    """

    ids_T: np.ndarray
    position_T: np.ndarray
    window_T: np.ndarray
    loss_T: np.ndarray
    sides: dict[Side, SideRoutes]
    steps: int

    @property
    def tokens(self) -> int:
        """T."""
        return len(self.ids_T)

    @property
    def tops(self) -> dict[Side, np.ndarray]:
        """Each routed side's best choices, [S·H, T]."""
        return {side: own.top for side, own in self.sides.items()}


def capture(
    params: dict[str, Any],
    config: ModelConfig,
    batches: Iterable[Mapping[str, np.ndarray]],
    *,
    limit: int = LIMIT,
    mesh: Mesh | None = None,
    step: int | None = None,
) -> Routes:
    """The routes of the first `limit` tokens of the batches, of which no more are read than that takes.

    params: nested dictionaries as from `mom_jax.parameters`. batches: `tokens` int32 [B, L] and, where there are any,
    `mask`, `segment_ids` and `positions`, whole on every process. mesh: where the parameters lie, by default on one
    device. step: training steps taken, for priors that are annealed; None for their full strength. The model runs as it
    is evaluated on tasks: without dropout, and no choice is dropped for want of room.

    Raises ValueError where no batch has a token.
    """
    mesh, config = mesh or make_mesh(), config.for_inference()
    at = None if step is None else jnp.asarray(step, jnp.int32)
    parts: list[Routes] = []
    left = limit
    for batch in batches:
        seen = jax.device_get(observe(params, place(batch, mesh), at, config=config, mesh=mesh))
        part = routes_of(seen, batch, config)
        parts.append(part)
        left -= part.tokens
        if left <= 0:
            break
    return joined(parts, limit)


def routes_of(seen: Mapping[str, np.ndarray], batch: Mapping[str, np.ndarray], config: ModelConfig) -> Routes:
    """The routes in what `observe` saw of a batch."""
    rows = np.asarray(batch["tokens"]).shape[0]
    real = np.asarray(seen["real"])[:rows]
    segments = np.asarray(batch["segment_ids"]) if "segment_ids" in batch else np.ones(real.shape, np.int32)
    sides: dict[Side, SideRoutes] = {}
    for side in config.routed_sides:
        index, weight = (np.asarray(seen[f"{side}/{name}"])[:rows] for name in ("index", "weight"))  # [B, S·H, L, K]
        sides[side] = SideRoutes(
            np.moveaxis(index, 1, 0)[:, real], np.moveaxis(weight, 1, 0)[:, real], config.modules(side)
        )
    # A sequence begins where the row or the segment is another one than the token's before.
    row, column = np.nonzero(real)
    begins = np.ones(len(row), bool)
    same_segment = segments[row, column][1:] == segments[row, column][:-1]
    begins[1:] = (row[1:] != row[:-1]) | ~same_segment
    window = np.cumsum(begins, dtype=np.int32) - 1
    starts = np.flatnonzero(begins)
    return Routes(
        ids_T=np.asarray(batch["tokens"])[real].astype(np.int32),
        position_T=(np.arange(len(row)) - starts[window]).astype(np.int32),
        window_T=window.astype(np.int32),
        loss_T=np.asarray(seen["nll"])[:rows][real],
        sides=sides,
        steps=config.num_chunks * config.num_steps,
    )


def joined(parts: list[Routes], limit: int) -> Routes:
    """The first `limit` tokens of several routes, one after the other. Raises ValueError where there is no token."""
    if not any(part.tokens for part in parts):
        raise ValueError("routes need at least one batch with a token")
    shifts = np.cumsum([0, *(int(part.window_T.max(initial=-1)) + 1 for part in parts[:-1])])
    windows = [part.window_T + np.int32(shift) for part, shift in zip(parts, shifts, strict=True)]
    first = parts[0]

    def of_side(side: Side, name: str) -> np.ndarray:
        return np.concatenate([getattr(part.sides[side], name) for part in parts], 1)[:, :limit]

    return Routes(
        ids_T=np.concatenate([part.ids_T for part in parts])[:limit],
        position_T=np.concatenate([part.position_T for part in parts])[:limit],
        window_T=np.concatenate(windows)[:limit],
        loss_T=np.concatenate([part.loss_T for part in parts])[:limit],
        sides={
            side: SideRoutes(of_side(side, "index"), of_side(side, "weight"), own.modules)
            for side, own in first.sides.items()
        },
        steps=first.steps,
    )
