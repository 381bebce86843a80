"""How the modules specialise while they are trained: the same held-out tokens, measured again and again."""

import dataclasses
from typing import Any

from jax.sharding import Mesh

from mom_jax.analysis.specialisation import Specialisation, measure
from train.analysis.text import held_out
from train.config import Config, Phase
from train.data.prepared import Prepared

# Deals that the baselines are means of: the more tokens and steps, the steadier each.
PERMUTATIONS = 4


class Watch:
    """One phase's analyses."""

    def __init__(self, config: Config, phase: Phase, prepared: Prepared, mesh: Mesh) -> None:
        self.config, self.phase, self.mesh, self.prepared = config, phase, mesh, prepared
        self.before: Specialisation | None = None
        data = config.data
        rows = max(mesh.size, -(-config.analysis.tokens // data.length))
        self.data = dataclasses.replace(data, batch_size=rows)

    def wanted(self, step: int) -> bool:
        """Whether there is an analysis after this step of the phase."""
        every = self.config.analysis.every
        return every > 0 and (step % every == 0 or step in (1, self.phase.steps))

    def record(self, params: dict[Any, Any], step: int) -> dict[str, Any]:
        """For the metrics log. All processes take part."""
        model = self.config.model_of(self.phase.name)
        tokens = self.data.batch_size * self.data.length
        batches = held_out(self.prepared, self.data, tokens)
        now = measure(params, model, batches, limit=tokens, mesh=self.mesh, step=step, permutations=PERMUTATIONS)
        record = now.record(self.before)
        self.before = now
        return {"kind": "analysis", "phase": self.phase.name, "step": step, **record}
