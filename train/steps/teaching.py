"""A teacher beside the model that is trained: a frozen model, as it is evaluated, on the same batch."""

import dataclasses
from typing import Any

import jax

from mom_jax.config import ModelConfig
from mom_jax.evaluation import counted, for_evaluation
from mom_jax.losses import distilled_next_token
from mom_jax.model import Output, with_parameters
from train.batch import Batch


@dataclasses.dataclass(frozen=True)
class Teaching:
    """What is compiled into a step: the teacher's model, and `distill_weight` and `distill_temperature` of a phase."""

    model: ModelConfig
    weight: float
    temperature: float


@dataclasses.dataclass(frozen=True)
class Taught:
    """The same with the teacher's parameters, which are an argument of the step."""

    teaching: Teaching
    params: dict[Any, Any]

    def next_token(self, output: Output, batch: Batch, labels: jax.Array) -> tuple[jax.Array, ...]:
        """(objective, nll, kl, number of labels) of a model's output, as `distilled_next_token` has them."""
        config, key = for_evaluation(self.teaching.model)
        teacher = with_parameters(config, self.params)(
            batch["tokens"],
            mask=counted(batch)[0],
            segment_ids=batch.get("segment_ids"),
            positions=batch.get("positions"),
            key=key,
        )
        return distilled_next_token(output, teacher, labels, self.teaching.weight, self.teaching.temperature)
