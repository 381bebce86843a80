"""What the checksums of checkpoints cost: `python -m benchmarks.reliability.checksums [--json]`.

A checkpoint of the last phase of configs/quickstart_paper.py, with random numbers, which do not compress, is saved;
then its checksums are made and compared, several times. `bytes`: on disk. `seal`, `compare`: median seconds of
processor time, of all threads, of making and of comparing them; `gib`: seconds for a GiB of `bytes`, of making. `step`:
`seal` shared out among the steps between two checkpoints (`checkpoint.every`), seconds: it runs beside them, so this is
the most that it takes from one.
"""

import dataclasses
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.measuring import timing
from configs.quickstart_paper import get_config
from mom_jax.sharding import make_mesh
from train.checkpoints import manifest
from train.checkpoints.manager import Checkpoints, Meta
from train.config import Config
from train.steps.optimizer import make_optimizer
from train.steps.state import abstract_state


def measure(config: Config, rounds: int) -> dict[str, Any]:
    """The seconds of making and comparing the checksums of one checkpoint."""
    config, phase = config.with_vocabulary(config.data.vocab_size), config.phases[-1]
    mesh, rng = make_mesh(), np.random.default_rng(0)
    like = abstract_state(config.model_of(phase.name), make_optimizer(phase.optim, phase.steps), mesh)

    def filled(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        return jax.device_put(rng.standard_normal(leaf.shape).astype(leaf.dtype), leaf.sharding)

    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(Path(folder))
        checkpoints.save(jax.tree.map(filled, like), Meta(config, phase.name, 1, 1, ""), None)
        checkpoints.wait()
        checkpoints.close()
        place = Path(folder) / "1"
        size = manifest.seal(place)
        calls = {"seal": lambda: manifest.seal(place), "compare": lambda: manifest.problem(place)}
        medians = timing.medians(timing.interleaved(calls, rounds, clock=time.process_time))
    seal = medians["seal"]
    return {
        "bytes": size,
        **medians,
        "gib": seal / size * 2**30,
        "step": seal / config.checkpoint.every,
        "rounds": rounds,
        **timing.machine(),
    }


def main() -> None:
    parser = timing.parser("reliability.checksums", __doc__, rounds=7)
    flags = parser.parse_args()
    config = get_config()
    if flags.small:
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, d_model=16, num_heads=2))
    timing.report(measure(config, flags.rounds), flags.json)


if __name__ == "__main__":
    main()
