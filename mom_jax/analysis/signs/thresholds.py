"""What is a sign of failure: the limits, each a field (docs/signs.md has the runs that they were measured on)."""

import dataclasses
import math

from mom_jax.fields import check_types, require

_SHARES = (
    "router_gradient",
    "router_movement",
    "step_share",
    "token_choice",
    "token_share",
    "module_spread",
    "skip_share",
    "churn",
    "weight_similarity",
    "output_similarity",
    "balance_share",
)
_OTHERS = ("exchange_effect", "loss_noise", "loss_rise")


@dataclasses.dataclass(frozen=True)
class SignsConfig:
    """Whether training watches for signs of failure, when it judges, and from where on something is one.

    A limit is a least or a most. Where a figure cannot be beyond it (0 for a least; 1, or infinity where that is no
    share, for a most) the sign is never given.

    Attributes:
        enabled: whether to watch at all.
        warmup: steps of a phase before anything is judged.
        window: steps, at least, from one judgement to the next; each is made at an evaluation.
        patience: judgements in a row that must find the same.
        router_gradient: the least norm of a side's router gradient, as a share of the whole gradient's.
        router_movement: the least change of a side's router parameters in a step, their root mean square, as a share of
            the learning rate. Adam's own is near 1, times optim.router_multiplier; weight decay alone is below 0.01.
        step_share: the least mutual information of a side's choices and the assembly step, as a share of the choices'
            entropy.
        token_choice: the least variety of a side's choices at one step: 0 where all tokens choose the same, 1 where the
            choices are spread evenly.
        token_share: the least mutual information of a side's choices and the token's identity, given the step and less
            what chance gives, as a share of the choices' entropy.
        exchange_effect: the least change of the held-out loss when choices are dealt to other tokens, nats per token.
        module_spread: the least variety of the modules in use: 0 where K of the N modules take all, 1 where all take
            the same. The number in use is exp(entropy).
        skip_share: the most tokens that may take SKIP: 0 where it is an even share of the choices or less, 1 where all
            take it at all steps.
        churn: the most choices on the same text that may change from one analysis to the next, as a share of what
            chance would change; judged in the last quarter of a phase.
        weight_similarity: the most mean cosine of two modules' weights.
        output_similarity: the most mean similarity (linear CKA) of two modules' outputs.
        balance_share: the most that the weighted balance loss may be of the total loss.
        loss_noise: the most standard deviation of the train loss from step to step, times the root of the number of
            sequences in a batch: what one sequence's loss seems to vary by, nats per token.
        loss_rise: the most that the mean train loss between two judgements may lie above the lowest before, the phase's
            first step included, nats per token.
    """

    enabled: bool = True
    warmup: int = 100
    window: int = 50
    patience: int = 2
    router_gradient: float = 1e-5
    router_movement: float = 0.02
    step_share: float = 0.01
    token_choice: float = 0.05
    token_share: float = 0.02
    exchange_effect: float = 0.004
    module_spread: float = 0.2
    skip_share: float = 0.65
    churn: float = 0.5
    weight_similarity: float = 0.5
    output_similarity: float = 0.95
    balance_share: float = 0.1
    loss_noise: float = 2.0
    loss_rise: float = 0.5

    def __post_init__(self) -> None:
        check_types(self, infinite=True)
        require(self.warmup >= 0, "warmup", self.warmup, "must be at least 0")
        for name in ("window", "patience"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "must be at least 1")
        for name in _SHARES:
            require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "must lie between 0 and 1")
        for name in _OTHERS:
            value = getattr(self, name)
            require(value >= 0 and not math.isnan(value), name, value, "must be at least 0")
