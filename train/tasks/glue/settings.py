"""How GLUE is done."""

import dataclasses
from typing import Any

from mom_jax.fields import require
from train.tasks.settings import FineTuneConfig


@dataclasses.dataclass(frozen=True)
class GlueConfig(FineTuneConfig):
    """How GLUE is done: all tasks alike, without a search. The model after the last epoch is evaluated on the
    validation split, once.

    Attributes:
        separator: the text between the two sentences of a pair.
    """

    separator: str = "\n"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(len(self.separator) > 0, "separator", self.separator, "must not be empty")

    def settings(self) -> dict[str, Any]:
        """What a result depends on, the seed aside."""
        return {**self.recipe(), "evaluation_limit": self.evaluation_limit}
