"""How XSUM is done."""

import dataclasses
from typing import Any, Literal

from mom_jax.fields import require
from train.tasks.settings import FineTuneConfig

# What a result depends on beside the fine-tuned model: it is generated again where these change.
GENERATION = ("split", "evaluation_limit", "beams", "length_penalty")


@dataclasses.dataclass(frozen=True)
class XsumConfig(FineTuneConfig):
    """How XSUM is done: the loss is on the summary only; the model after the last epoch writes the summaries, drawing
    nothing.

    Attributes:
        length: tokens of document, separator and summary together; what is too long of a document is cut off its end.
        separator: the text between document and summary.
        summary_length: tokens of a summary at most, its end included.
        beams: of the search for a summary; 1 takes the most probable token at each place.
        length_penalty: of a search with beams: a summary's log probability is divided by its length to this power.
        split: the articles to sum up.
        generation_batch: summaries that are written at once.
        samples: articles whose summaries are shown.
    """

    seeds: tuple[int, ...] = (0,)
    length: int = 512
    separator: str = "\nTL;DR: "
    summary_length: int = 64
    beams: int = 1
    length_penalty: float = 1.0
    split: Literal["test", "validation"] = "test"
    generation_batch: int = 32
    samples: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        require(len(self.separator) > 0, "separator", self.separator, "must not be empty")
        allowed = f"must be at least 2 and below length={self.length}"
        require(2 <= self.summary_length < self.length, "summary_length", self.summary_length, allowed)
        require(self.beams >= 1, "beams", self.beams, "must be at least 1")
        possible = abs(self.length_penalty) <= 100  # no number is not
        require(possible, "length_penalty", self.length_penalty, "must lie between -100 and 100")
        require(self.generation_batch >= 1, "generation_batch", self.generation_batch, "must be at least 1")
        require(self.samples >= 0, "samples", self.samples, "must be at least 0")

    def recipe(self) -> dict[str, Any]:
        left_out = {*GENERATION, "generation_batch", "samples"}
        return {name: value for name, value in super().recipe().items() if name not in left_out}

    def settings(self) -> dict[str, Any]:
        """What a result depends on, the seed aside."""
        return self.recipe() | {name: getattr(self, name) for name in GENERATION}
