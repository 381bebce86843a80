"""Smaller parts of a model's configuration: the balance loss, dropout."""

import dataclasses
from typing import Literal

from mom_jax.fields import check_types, require


@dataclasses.dataclass(frozen=True)
class BalanceConfig:
    """The load-balancing loss C·Σ f_i·P_i over all classes, SKIP and nulls included; and balance without a loss.

    Attributes:
        weight: its factor in the total loss.
        kind: `global`: over all steps of all chunks together; `depthwise`: the mean of each step's loss.
        softmax_again: take the softmax of scores that already are probabilities once more, as the official code does.
        needs_routed_attention: no balance loss at all where attention is not routed, as in the official code.
        over: the tokens whose means f and P are: of the whole `batch`, whatever it is accumulated from, or of each
            `micro_batch`, over whose losses is averaged, as happens where the official code accumulates. f of the batch
            must be known before the first gradient, so that `batch` costs a second forward pass of each micro-batch.
        bias_rate: after each training step a bias of each module on what ranks, in logits, rises or falls by this much
            where it was chosen less or more often than its chunk's mean (arXiv 2408.15664); SKIP and nulls have none
            (mom_jax/routers/balance.py). The loss above stays as `weight` says. 0: no bias.
    """

    weight: float = 0.01
    kind: Literal["global", "depthwise"] = "global"
    over: Literal["batch", "micro_batch"] = "batch"
    softmax_again: bool = False
    needs_routed_attention: bool = False
    bias_rate: float = 0.0

    def __post_init__(self) -> None:
        check_types(self)
        require(self.weight >= 0, "weight", self.weight, "must be at least 0")
        require(self.bias_rate >= 0, "bias_rate", self.bias_rate, "must be at least 0")


@dataclasses.dataclass(frozen=True)
class DropoutConfig:
    """Rates of dropout, each at least 0 and below 1.

    Attributes:
        embedding: of the sums of token and position embeddings.
        attention: of the attention probabilities.
        residual: of the sublayers' outputs; routed FFNs have none.
    """

    embedding: float = 0.0
    attention: float = 0.0
    residual: float = 0.0

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("embedding", "attention", "residual"):
            require(0 <= getattr(self, name) < 1, name, getattr(self, name), "must be at least 0 and below 1")

    @property
    def active(self) -> bool:
        """Whether any rate is above 0."""
        return max(self.embedding, self.attention, self.residual) > 0
