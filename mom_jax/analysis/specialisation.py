"""How far a model's modules have specialised, measured on a text: the routes of its tokens, the similarity of its
modules, and what the choices depend on; the same figures that training logs.

>>> found = measure(mom.parameters(model), model.config, [{"tokens": ids}])
>>> found.record()
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mom_jax.analysis.dependence import Dependence, dependence
from mom_jax.analysis.observe import observe, place
from mom_jax.analysis.paths import churn, depth
from mom_jax.analysis.routes import LIMIT, Routes, joined, routes_of
from mom_jax.analysis.similarity import TOKENS, Similarity, similarity
from mom_jax.config import ModelConfig, Side
from mom_jax.sharding import make_mesh


@dataclasses.dataclass(frozen=True)
class Specialisation:
    """routes: of the tokens of the text; without sides in a vanilla model. similarity: of both sides' modules, in a
    vanilla model of the layers that become modules. dependence: of the routed sides."""

    routes: Routes
    similarity: dict[Side, Similarity]
    dependence: dict[Side, Dependence]

    def record(self, before: Mapping[Side, np.ndarray] | None = None) -> dict[str, Any]:
        """Plain numbers for a log, tables to four digits. before: `routes.tops` of an earlier measurement on the same
        tokens, from which `churn` is counted; null without one."""
        record: dict[str, Any] = {"similarity": {side: _similar(own) for side, own in self.similarity.items()}}
        if self.routes.sides:
            record["dependence"] = {side: dataclasses.asdict(own) for side, own in self.dependence.items()}
            record["depth"] = depth(self.routes).record()
            changed = None if before is None else churn(before, self.routes.tops)
            record["churn"] = {side: changed and changed[side] for side in self.routes.sides}
        return record


def measure(
    params: dict[str, Any],
    config: ModelConfig,
    batches: Iterable[Mapping[str, np.ndarray]],
    *,
    limit: int = LIMIT,
    mesh: Mesh | None = None,
    step: int | None = None,
    permutations: int = 10,
) -> Specialisation:
    """Measures a model on the first `limit` tokens of the batches; arguments as of `routes.capture`.

    The modules' similarity is measured on the residual stream of the first batches, as many as it needs. permutations:
    deals that the baselines of the dependence are means of. Raises ValueError where no batch has a token.
    """
    mesh, config = mesh or make_mesh(), config.for_inference()
    at = None if step is None else jnp.asarray(step, jnp.int32)
    parts: list[Routes] = []
    streams: list[dict[str, np.ndarray]] = []
    left = limit
    for batch in batches:
        seen = jax.device_get(observe(params, place(batch, mesh), at, config=config, mesh=mesh, inputs=True))
        stream = seen.pop("inputs", None)
        if stream is not None and sum(own["inputs"][..., 0].size for own in streams) < TOKENS:
            rows = len(batch["tokens"])
            named = {name: np.asarray(batch[name]) for name in ("mask", "segment_ids") if name in batch}
            streams.append({"inputs": stream[:rows], **named})
        parts.append(routes_of(seen, batch, config))
        left -= parts[-1].tokens
        if left <= 0:
            break
    routes = joined(parts, limit)
    modules: dict[Side, Similarity] = {}
    if streams:
        stream = {name: np.concatenate([own[name] for own in streams]) for name in streams[0]}
        modules = similarity(params, config, stream.pop("inputs"), stream, mesh=mesh)
    return Specialisation(routes, modules, dependence(routes, permutations=permutations))


def _similar(own: Similarity) -> dict[str, Any]:
    tables = {"weights": own.weights, "outputs": own.outputs}
    if own.patterns is not None:
        tables["attention_patterns"] = own.patterns
    record: dict[str, Any] = {name: _number(own.mean(table)) for name, table in tables.items()}
    return record | {f"{name}_NxN": np.round(table, 4).tolist() for name, table in tables.items()}


def _number(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else value
