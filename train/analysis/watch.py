"""How the modules specialise while they are trained: the same held-out tokens, measured again and again."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from mom_jax.analysis.specialisation import measure
from train.analysis.kept import Tops, keep, kept
from train.analysis.text import held_out
from train.config import Config, Phase
from train.data.prepared import Prepared

# Deals that the baselines are means of: the more tokens and steps, the steadier each.
PERMUTATIONS = 4


class Watch:
    """One phase's analyses."""

    def __init__(self, config: Config, phase: Phase, prepared: Prepared, mesh: Mesh) -> None:
        self.config, self.phase, self.mesh, self.prepared = config, phase, mesh, prepared
        self.before: Tops | None = None  # the best choices at the analysis before
        data = config.data
        rows = max(mesh.size, -(-config.analysis.tokens // data.length))
        self.data = dataclasses.replace(data, batch_size=rows)

    def wanted(self, step: int) -> bool:
        """Whether there is an analysis after this step of the phase."""
        every = self.config.analysis.every
        return every > 0 and (step % every == 0 or step in (1, self.phase.steps))

    def record(self, params: dict[Any, Any], step: int) -> dict[str, Any]:
        """For the metrics log. All processes take part."""
        config, name = self.config, self.phase.name
        tokens = self.data.batch_size * self.data.length
        batches = held_out(self.prepared, self.data, tokens)
        model = config.model_of(name)
        now = measure(params, model, batches, limit=tokens, mesh=self.mesh, step=step, permutations=PERMUTATIONS)
        run, tops = Path(config.run).expanduser(), now.routes.tops
        if self.before is None:
            self.before = kept(run, name, self._before(step), tops)
        record = now.record(self.before)
        if tops and jax.process_index() == 0:
            keep(run, name, step, tops)
        self.before = tops
        return {"kind": "analysis", "phase": name, "step": step, **record}

    def _before(self, step: int) -> int:
        """The step of the analysis before; 0 for the first."""
        every = self.config.analysis.every
        return (step - 1) // every * every or min(step - 1, 1)
