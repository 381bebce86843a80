"""Both phases on the sources of Python's standard library, small enough for two CPU cores.

Phase 2 is by this library's recipe (`mom_jax.interop.recipe`): attention in order, and FFNs cut in halves, of which
each token takes any two at each step. It does better than the vanilla model trained on (docs/results.md).
configs/quickstart_paper.py has the paper's routing.

Command: python -m train.main --config configs/quickstart.py
"""

import dataclasses

from configs import quickstart_paper
from mom_jax.interop.recipe import recommended
from train.config import Config


def get_config() -> Config:
    config = quickstart_paper.get_config()
    return dataclasses.replace(config, model=recommended(config.model, parts=2), run="runs/quickstart")
