"""What a model loses when modules are removed: its loss on fixed batches with them forbidden, and which go first."""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mom_jax.analysis import pruning
from mom_jax.analysis.observe import place
from mom_jax.analysis.pruning import Keep
from mom_jax.analysis.specialisation import TOKENS, measure
from mom_jax.config import ModelConfig, Side
from mom_jax.fields import ConfigError
from mom_jax.losses import LossSums
from mom_jax.sharding import make_mesh
from train.batch import Rows
from train.steps.evaluation_step import evaluation_step
from train.steps.state import abstract_params

Rank = Literal["usage", "loss", "similarity"]
RANKS: tuple[Rank, ...] = ("usage", "loss", "similarity")


@dataclasses.dataclass(frozen=True)
class Ranking:
    """Of the routed sides. order: for each chunk the modules in the order in which they go. scores: [S, N], what they
    were ranked by: `usage`, the share of the chunk's choices; `loss`, nats per token that the model loses without the
    module; `similarity`, the mean similarity of its outputs to those of the pool's other modules."""

    rank: Rank
    order: dict[Side, list[list[int]]]
    scores: dict[Side, np.ndarray]


def first_tokens(batches: Iterable[Rows], tokens: int) -> list[Rows]:
    """The first batches, as many as have so many tokens, padding included."""
    taken: list[Rows] = []
    for batch in batches:
        taken.append(batch)
        tokens -= batch["tokens"].size
        if tokens <= 0:
            break
    return taken


class Removal:
    """A model on fixed batches, with modules forbidden: one compiled program, whatever is forbidden.

    It runs as it is evaluated on tasks (`ModelConfig.for_inference`).

    Args:
        params: nested dictionaries of arrays, which are put on the mesh.
        batches: whole on every process. They stay on the devices, so that there should be a bounded number of them.
    """

    def __init__(
        self,
        params: dict[Any, Any],
        config: ModelConfig,
        batches: Iterable[Rows],
        *,
        mesh: Mesh | None = None,
    ) -> None:
        self.config, self.mesh = config.for_inference(), mesh or make_mesh()
        like = abstract_params(config, self.mesh)
        self.params = jax.tree.map(lambda leaf, shape: jax.device_put(leaf, shape.sharding), params, like)
        self.batches = list(batches)
        self._placed = [place(batch, self.mesh) for batch in self.batches]
        self._sums: dict[Any, LossSums] = {}

    def sums(self, keep: Keep) -> LossSums:
        """The sums over all batches with all modules but `keep` forbidden, float64. Raises ConfigError for what cannot
        be, and ValueError without batches."""
        whole = pruning.everything(self.config) | {side: [list(kept) for kept in keep[side]] for side in keep}
        key = repr(sorted(whole.items()))
        if key not in self._sums:
            prior, total = pruning.forbidden(self.config, keep), None
            for batch in self._placed:
                step = jnp.zeros((), jnp.int32)  # of no importance: no preference is annealed any more
                own = evaluation_step(self.params, batch, step, None, prior, config=self.config, mesh=self.mesh)
                own = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), jax.device_get(own))
                total = own if total is None else jax.tree.map(np.add, total, own)
            if total is None:
                raise ValueError("needs at least one batch")
            self._sums[key] = total
        return self._sums[key]

    def loss(self, keep: Keep | None = None) -> float:
        """Nats per token with all modules but `keep` forbidden, by default none."""
        sums = self.sums(keep or {})
        return float(sums.nll) / max(float(sums.count), 1)

    def loss_or_inf(self, keep: Keep) -> float:
        """The same; infinite where the prior would leave a step nothing to choose."""
        try:
            return self.loss(keep)
        except ConfigError:
            return math.inf

    @property
    def tokens(self) -> int:
        """How many tokens are predicted."""
        return int(self.sums({}).count)

    def ranking(self, rank: Rank) -> Ranking:
        """The modules of each routed side in the order in which they go."""
        scores = {"usage": self._usage, "loss": self._losses, "similarity": self._similarities}[rank]()
        order, shown = {}, {}
        for side, own in scores.items():
            same = pruning.needs_same(self.config, side)
            if rank == "similarity":
                order[side] = pruning.most_redundant_first(own, same=same)
                others = ~np.eye(own.shape[1], dtype=bool)
                shown[side] = np.where(others[None], own, 0.0).sum(-1) / (own.shape[1] - 1)
            else:
                order[side], shown[side] = pruning.lowest_first(own, same=same), own
        return Ranking(rank, order, shown)

    def _usage(self) -> dict[Side, np.ndarray]:
        usage = {}
        for side, stats in self.sums({}).routing.sides().items():
            choices = np.asarray(stats.choices_C).sum(1)  # [S, C]
            usage[side] = choices[:, : self.config.modules(side)] / np.maximum(choices.sum(-1, keepdims=True), 1)
        return usage

    def _losses(self) -> dict[Side, np.ndarray]:
        losses = {}
        for side in self.config.routed_sides:
            own = np.zeros((self.config.num_chunks, self.config.modules(side)))
            for s, m in np.ndindex(own.shape):
                keep = pruning.everything(self.config)
                keep[side] = [[i for i in kept if (chunk, i) != (s, m)] for chunk, kept in enumerate(keep[side])]
                own[s, m] = self.loss_or_inf(keep) - self.loss()
            losses[side] = own
        return losses

    def _similarities(self) -> dict[Side, np.ndarray]:
        """[S, N, N]."""
        found = measure(self.params, self.config, self.batches, limit=TOKENS, mesh=self.mesh, permutations=1)
        similar = {}
        for side in self.config.routed_sides:
            table, n = found.similarity[side].outputs, self.config.modules(side)
            similar[side] = np.stack([table[i : i + n, i : i + n] for i in range(0, len(table), n)])
        return similar
