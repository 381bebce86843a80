"""The settings of fine-tuning."""

import dataclasses
from typing import Any

from mom_jax.fields import check_types, require
from train.config import OptimConfig


@dataclasses.dataclass(frozen=True)
class FineTuneConfig:
    """How a model is fine-tuned: AdamW (beta 0.9 and 0.95, no weight decay of biases and layer norms), a linear warm-up
    and a linear decay to 0. The balance and z-losses are the model's own.

    Attributes:
        seeds: one fine-tuning each: of a new head, the order of the examples, and dropout where the model has some.
        epochs: times that each training example is seen; the model after the last one counts.
        batch_size: examples per optimizer step.
        accumulation: micro-batches per optimizer step, to save memory; the step equals the whole batch's.
        learning_rate: the highest, after the warm-up.
        warmup: the share of all steps over which the learning rate rises.
        weight_decay: of matrices.
        clip_norm: the gradient's norm at most.
        router_multiplier: the routers' learning rate over everybody else's.
        length: tokens per example at most.
        train_limit: training examples at most, for a trial; 0 takes them all.
        evaluation_limit: examples of each other split at most, for a trial; 0 takes them all.
        download: download and prepare data sets that are not there.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    epochs: int = 3
    batch_size: int = 32
    accumulation: int = 1
    learning_rate: float = 5e-5
    warmup: float = 0.06
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    router_multiplier: float = 1.0
    length: int = 128
    train_limit: int = 0
    evaluation_limit: int = 0
    download: bool = False

    def __post_init__(self) -> None:
        check_types(self)
        require(len(self.seeds) > 0, "seeds", self.seeds, "must have at least one")
        require(len(set(self.seeds)) == len(self.seeds), "seeds", self.seeds, "must be different")
        require(min(self.seeds) >= 0, "seeds", self.seeds, "must be at least 0")
        require(max(self.seeds) < 2**31, "seeds", self.seeds, "must be below 2**31")
        for name in ("epochs", "batch_size"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "must be at least 1")
        require(self.length >= 8, "length", self.length, "must be at least 8")
        require(0 <= self.warmup < 1, "warmup", self.warmup, "must be at least 0 and below 1")
        for name in ("train_limit", "evaluation_limit"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "must be at least 0")
        divides = self.batch_size % self.optim.accumulation == 0  # `optim` checks the rest
        require(divides, "accumulation", self.accumulation, f"must divide batch_size={self.batch_size}")

    @property
    def optim(self) -> OptimConfig:
        """The optimizer, schedule aside."""
        return OptimConfig(
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            clip_norm=self.clip_norm,
            router_multiplier=self.router_multiplier,
            accumulation=self.accumulation,
        )

    def recipe(self) -> dict[str, Any]:
        """What a fine-tuned model depends on, for its record."""
        left_out = {"seeds", "evaluation_limit", "download"}
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in left_out}
