"""What the special cases share: the quickstart's data, sizes and optimizer, and one phase from scratch."""

import dataclasses
from typing import Any

from configs import quickstart_paper
from train.config import Config, Phase


def experiment(name: str, **fields: Any) -> Config:
    """The quickstart with other `fields` of its model, trained in one phase for as many steps as both of its phases."""
    config = quickstart_paper.get_config()
    steps = sum(phase.steps for phase in config.phases)
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, **fields),
        phases=(Phase("train", steps, optim=config.phases[-1].optim),),
        run=f"runs/special/{name}",
    )
