"""Three ways to go on from a vanilla transformer: the quickstart's second phase, with K = 1 and 2.

Command: python -m train.study configs/studies/start.py

vanilla     the same vanilla transformer, trained on
paper       a MoM with new routers, free to choose from the first step
preserving  a MoM that starts as the vanilla one, its preference annealed away over half of the steps
"""

import dataclasses

from configs import quickstart_paper
from mom_jax.interop.phases import preserving
from train.config import Config
from train.study import Arm, Study


def start_as_vanilla(config: Config) -> Config:
    """The vanilla-preserving start."""
    model = preserving(config.model, anneal_steps=config.phases[-1].steps // 2)
    return dataclasses.replace(config, model=model)


def get_study() -> Study:
    return Study(
        name="start",
        question="Does it matter how a MoM starts from a vanilla transformer?",
        base={"small": quickstart_paper.get_config()},
        arms=(
            Arm("vanilla", {"phases.mom.model": "vanilla"}),
            Arm("paper, K=1", {"model.top_k": 1}),
            Arm("paper, K=2", {"model.top_k": 2}),
            Arm("preserving, K=1", ({"model.top_k": 1}, start_as_vanilla)),
            Arm("preserving, K=2", ({"model.top_k": 2}, start_as_vanilla)),
        ),
    )
