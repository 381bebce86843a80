"""Validation: the loss on held-out windows, the routing there, and what exchanging the choices among tokens costs."""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mom_jax.analysis import routing
from mom_jax.config import ModelConfig
from mom_jax.losses import LossSums
from mom_jax.sharding import make_mesh, place_rows
from train.batch import Batch
from train.config import DataConfig
from train.data.pipeline import validation_batches
from train.data.prepared import Prepared
from train.numbers import NumbersError
from train.steps.evaluation_step import evaluation_step

EXCHANGE_SEEDS = (0, 1, 2)


def exp(value: float) -> float:
    """e to the power of it, infinite where that overflows, and NaN of NaN."""
    return math.inf if value >= 700 else math.exp(value)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """loss: nats per token over `tokens` predicted tokens. routers: `mom_jax.analysis.routing.summary`."""

    loss: float
    tokens: int
    routers: dict[str, dict[str, Any]]

    def check(self, where: str) -> "Evaluation":
        """Itself. Raises NumbersError about `where` if the loss is no number."""
        if not math.isfinite(self.loss):
            raise NumbersError(f"{where}: the validation loss is {self.loss}, over {self.tokens:,} tokens")
        return self

    @property
    def perplexity(self) -> float:
        """exp(loss), infinite where that overflows."""
        return exp(self.loss)

    def record(self) -> dict[str, Any]:
        """For the metrics log."""
        record = {"loss": self.loss, "perplexity": self.perplexity, "tokens": self.tokens}
        return record | ({"routers": self.routers} if self.routers else {})


def _evaluate(
    params: dict[Any, Any],
    config: ModelConfig,
    batches: Iterable[Batch],
    step: int,
    mesh: Mesh | None,
    exchange_key: Any = None,
) -> Evaluation:
    """Sums over batches, and the losses of the sums. Raises ValueError without batches."""
    mesh = mesh or make_mesh()
    total: LossSums | None = None
    at = jnp.asarray(step, jnp.int32)
    for batch in batches:
        placed = jax.tree.map(lambda rows: place_rows(rows, mesh), batch)
        sums = jax.device_get(evaluation_step(params, placed, at, exchange_key, config=config, mesh=mesh))
        # In float64 on the host: float32 would lose tokens in long evaluations.
        sums = jax.tree.map(lambda x: np.asarray(x, np.float64), sums)
        total = sums if total is None else jax.tree.map(np.add, total, sums)
    if total is None:
        raise ValueError("an evaluation needs at least one batch")
    loss = float(total.nll) / max(float(total.count), 1)
    return Evaluation(loss, int(total.count), routing.summary(total.routing, config))


def validate(
    params: dict[Any, Any],
    config: ModelConfig,
    prepared: Prepared,
    data: DataConfig,
    *,
    step: int,
    limit: int,
    mesh: Mesh | None = None,
) -> Evaluation:
    """The loss on fixed sequences of the held-out tokens: at most `limit` batches, or all of them where it is 0.

    step: the training step, for priors that are annealed. mesh: where the parameters lie, by default on one device.
    """
    return _evaluate(params, config, validation_batches(prepared, data, limit=limit), step, mesh)


def exchange_test(
    params: dict[Any, Any],
    config: ModelConfig,
    prepared: Prepared,
    data: DataConfig,
    *,
    step: int,
    batches: int = 24,
    mesh: Mesh | None = None,
) -> dict[str, list[float]]:
    """Validation losses with the routers' choices, and with the same choices dealt to other tokens.

    Each seed has its own windows, spread evenly over the held-out tokens, and its own deal; `normal` and `exchanged`
    have one loss per seed, in nats per token. If routing carried no information the two would be alike. On a mesh every
    device deals among its own tokens.
    """
    losses: dict[str, list[float]] = {"normal": [], "exchanged": []}
    for seed in EXCHANGE_SEEDS:
        for name, key in (("normal", None), ("exchanged", jax.random.key(seed))):
            shift = seed / len(EXCHANGE_SEEDS)
            some = validation_batches(prepared, data, limit=batches, shift=shift)
            losses[name].append(_evaluate(params, config, some, step, mesh, key).loss)
    return losses
