"""The loss of a model against the modules that are cut, per side and on both, by each ranking.

The paper's point is half of the attention modules and a quarter of the FFN modules.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mom_jax.analysis.pruning import keep_after
from mom_jax.config import Side
from train.analysis.removal import RANKS, Rank, Ranking, Removal
from train.reporting.tables import markdown, spread_of

PAPER: dict[Side, float] = {"attention": 0.5, "ffn": 0.25}
POINTS = 16  # of a curve, however many modules there are
NAMES = {"attention": "attention", "ffn": "FFN", "both": "both sides", "paper": "the paper's point"}


@dataclasses.dataclass(frozen=True)
class Point:
    """cut: modules cut of each chunk's pool, by side. losses: by ranking, nats per token; infinite where a step would
    have nothing left that its prior allows."""

    cut: dict[Side, int]
    losses: dict[Rank, float]

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {"cut": self.cut, "losses": {rank: _number(loss) for rank, loss in self.losses.items()}}


@dataclasses.dataclass(frozen=True)
class PruneCurve:
    """loss: with nothing cut, over `tokens` predicted tokens, nats per token. modules: N of each routed side. chunks:
    S. curves: by what is cut, a routed side or `both`, from nothing to all modules but one. paper: the paper's shares,
    as many as whole modules go into them."""

    loss: float
    tokens: int
    modules: dict[Side, int]
    chunks: int
    rankings: dict[Rank, Ranking]
    curves: dict[str, list[Point]]
    paper: Point

    def record(self) -> dict[str, Any]:
        """For JSON."""

        def order(ranking: Ranking) -> dict[str, Any]:
            scores = {side: [[_number(x) for x in row] for row in own] for side, own in ranking.scores.items()}
            return {"order": ranking.order, "scores": scores}

        return {
            "loss": self.loss,
            "tokens": self.tokens,
            "modules": self.modules,
            "chunks": self.chunks,
            "rankings": {rank: order(ranking) for rank, ranking in self.rankings.items()},
            "curves": {name: [point.record() for point in points] for name, points in self.curves.items()},
            "paper": self.paper.record(),
        }


def measure(removal: Removal, ranks: Sequence[Rank] = RANKS, *, ranked: Removal | None = None) -> PruneCurve:
    """Measures the curve of a model with routers, whose modules are ranked once, with nothing removed.

    ranked: the model on other text, by which they are ranked: on the text that is measured, the best of many ways to
    cut would look better than it is.
    """
    config = removal.config
    modules = {side: config.modules(side) for side in config.routed_sides}
    rankings = {rank: (ranked or removal).ranking(rank) for rank in ranks}

    def point(cut: Mapping[Side, int]) -> Point:
        def loss(ranking: Ranking) -> float:
            return removal.loss_or_inf({side: keep_after(ranking.order[side], count) for side, count in cut.items()})

        return Point(dict(cut), {rank: loss(ranking) for rank, ranking in rankings.items()})

    curves = {side: [point({side: cut}) for cut in _counts(n)] for side, n in modules.items()}
    named: dict[str, list[Point]] = {str(side): points for side, points in curves.items()}
    if len(modules) > 1:
        shares = [cut / max(modules.values()) for cut in _counts(max(modules.values()))]
        cuts = [{side: share_of(n, share) for side, n in modules.items()} for share in shares]
        named["both"] = [point(cut) for cut, _ in itertools.groupby(cuts)]
    paper = point({side: share_of(n, PAPER[side]) for side, n in modules.items()})
    return PruneCurve(removal.loss(), removal.tokens, modules, config.num_chunks, rankings, named, paper)


def share_of(modules: int, share: float) -> int:
    """How many of a pool's modules a share is: whole ones, as many as go into it."""
    return int(share * modules + 1e-9)


def table(curve: PruneCurve) -> str:
    """A Markdown table: what is cut, and the loss by each ranking."""
    return mean_table([curve])


def alike(curves: Sequence[PruneCurve]) -> bool:
    """Whether several models' curves have the same points, so that there is a mean of them."""
    return len(curves) > 1 and len({(str(own.modules), own.chunks, str(tuple(own.rankings))) for own in curves}) == 1


def mean_table(curves: Sequence[PruneCurve]) -> str:
    """The same of several models that are `alike`, such as a run's seeds: means and standard deviations (n - 1) of the
    losses with nothing cut, and of how far they rise."""
    first = curves[0]
    header = ["cut", *(f"{NAMES[side]} modules left" for side in first.modules)]
    header += [f"by {rank}, nats/token" for rank in first.rankings]
    whole = spread_of([own.loss for own in curves], 4)
    rows = [("nothing", *(str(n) for n in first.modules.values()), *[whole] * len(first.rankings))]
    for name, points in [*first.curves.items(), ("paper", [first.paper])]:
        for i, point in enumerate(points):
            if name != "paper" and not any(point.cut.values()):
                continue
            left = [str(n - point.cut.get(side, 0)) for side, n in first.modules.items()]
            of_all = [own.paper if name == "paper" else own.curves[name][i] for own in curves]
            losses = [
                _risen([(own.loss, of.losses[rank]) for own, of in zip(curves, of_all, strict=True)])
                for rank in first.rankings
            ]
            mark = ("**", "**") if name == "paper" else ("", "")
            rows.append((NAMES[name].join(mark), *left, *losses))
    return markdown(header, rows)


def _risen(losses: Sequence[tuple[float, float]]) -> str:
    """Of the losses of each model whole and cut; one model's with the loss itself."""
    rises = [cut - whole for whole, cut in losses]
    return f"{losses[0][1]:.4f} ({rises[0]:+.4f})" if len(losses) == 1 else spread_of(rises, 4, "+")


def _counts(modules: int) -> list[int]:
    """From 0 to all modules but one, at most `POINTS` of them."""
    return sorted({int(cut) for cut in np.linspace(0, modules - 1, min(modules, POINTS)).round()})


def _number(value: float) -> float | None:
    """For JSON, which has no infinity: null, of a module that cannot go."""
    return float(value) if np.isfinite(value) else None
