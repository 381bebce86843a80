"""Batches on their way to the devices."""

import time
from collections import deque
from collections.abc import Iterator

import jax
from jax.sharding import Mesh

from train.batch import Rows
from train.steps.placement import place_share

AHEAD = 2


class DevicePrefetch(Iterator[dict[str, jax.Array]]):
    """Places every process's share of a batch on the devices, `AHEAD` batches before it is asked for.

    waited: seconds that reading and placing have taken so far. The devices compute meanwhile, so it is a bound of what
    they can have waited.
    """

    def __init__(self, batches: Iterator[Rows], mesh: Mesh) -> None:
        self._batches, self._mesh = batches, mesh
        self._placed: deque[dict[str, jax.Array]] = deque()
        self.waited = 0.0

    def __next__(self) -> dict[str, jax.Array]:
        start = time.perf_counter()
        while len(self._placed) <= AHEAD:
            self._placed.append({name: place_share(rows, self._mesh) for name, rows in next(self._batches).items()})
        self.waited += time.perf_counter() - start
        return self._placed.popleft()
