"""The parts of a model's configuration: routers, choices, balance loss, dropout."""

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp

from mom_jax.fields import check_types, require

Side = Literal["attention", "ffn"]
SIDES: tuple[Side, Side] = ("attention", "ffn")


@dataclasses.dataclass(frozen=True)
class RouterConfig:
    """How a router scores the classes of its side (paper section 3.2; both sides have the same kind of router).

    Attributes:
        kind: `mlp` has no state; `gru` keeps one over the assembly steps; `gru_dev` drops the recurrence from the
            candidate; `gru_random` mixes uniform noise into the state.
        dim: R, the width of the hidden layer or of the state.
        scoring: `softmax` of logits / temperature, or `raw` scores.
        weights: what multiplies a chosen module's output. `renormalised`: its probability over the sum of the K
            chosen (null classes included); `probability`: the probability itself; `raw`: the raw score. `auto`: `raw`
            with raw scoring, else `probability` at K = 1 (where the renormalised weight is constantly 1 and the
            language-model loss would give the router no gradient) and `renormalised` at K > 1.
        straight_through: multiply by the weight's sign; the gradient passes to the weight, clamped to [-1, 1] per
            token and module.
        all_modules: every token uses every module, weighted by its score; `top_k` and `weights` have no say.
        classes: how many classes a router scores, SKIP aside: its `own` side's modules, the `max` of both sides', or
            the `ffn` side's (the last two as the official code has them; classes without a module are null).
        noise_in_evaluation: whether `gru_random` needs noise in evaluation too; otherwise its mean, 1/2, is used
            there.
    """

    kind: Literal["mlp", "gru", "gru_dev", "gru_random"] = "gru"
    dim: int = 256
    scoring: Literal["softmax", "raw"] = "softmax"
    temperature: float = 0.2
    weights: Literal["auto", "renormalised", "probability", "raw"] = "auto"
    straight_through: bool = False
    all_modules: bool = False
    classes: Literal["own", "max", "ffn"] = "own"
    noise_in_evaluation: bool = False

    def __post_init__(self) -> None:
        check_types(self)
        require(self.dim >= 1, "dim", self.dim, "must be at least 1")
        require(self.temperature > 0, "temperature", self.temperature, "must be positive")
        allowed = ("auto", "raw") if self.scoring == "raw" else ("auto", "renormalised", "probability")
        require(self.weights in allowed, "weights", self.weights, f"with scoring={self.scoring!r} use one of {allowed}")


@dataclasses.dataclass(frozen=True)
class ChoiceConfig:
    """What one side (attention or FFN) may choose at which step: a prior on the router's logits.

    Attributes:
        choice: `free`: any class at any step; `ordered`: each step uses a module of its own (a vanilla layer; no router
            is built); `ordered_or_skip`: its own module or SKIP.
        schedule: the module of its own that each of the H steps has. None: step h has module h.
        exit: SKIP is for good: a token whose best class at a step is SKIP has left, and from then on takes SKIP on both
            sides until the end of the chunk (early exit; Elbayad et al., arXiv 1910.10073).
        capacity: the share of each sequence's tokens that take modules at a step, those whose best module is furthest
            ahead of SKIP; all others take SKIP (mixture-of-depths, Raposo et al., arXiv 2404.02258). A step whose prior
            forbids SKIP has no capacity. It looks at the whole sequence, so that evaluation and decoding go without
            it, by `ModelConfig.causal`. None: each token decides by itself.
        preference: a bonus, in logits after the temperature, for each step's own module; steps beyond the last module
            prefer SKIP where there is one. Only with `free`.
        skip_preference: a bonus for SKIP at the steps that have a module of their own. Only with `free`.
        anneal_steps: both preferences fall to 0 over this many training steps; 0 keeps them. See `remaining`.
        prior: an explicit table of H rows of C logits that is added: 0 free, -inf forbidden, positive preferred.
    """

    choice: Literal["free", "ordered", "ordered_or_skip"] = "free"
    schedule: tuple[int, ...] | None = None
    exit: bool = False
    capacity: float | None = None
    preference: float = 0.0
    skip_preference: float = 0.0
    anneal_steps: int = 0
    prior: tuple[tuple[float, ...], ...] | None = None

    def __post_init__(self) -> None:
        check_types(self)
        require(self.anneal_steps >= 0, "anneal_steps", self.anneal_steps, "must be at least 0")
        share = self.capacity
        require(share is None or 0 < share <= 1, "capacity", share, "must be above 0 and at most 1, or None")
        free = self.choice == "free"
        for name in ("preference", "skip_preference"):
            value = getattr(self, name)
            require(math.isfinite(value), name, value, "must be finite")
            require(free or value == 0, name, value, "needs choice='free'")
        require(free or self.prior is None, "prior", self.prior, "needs choice='free'")
        if self.prior is not None:
            for h, row in enumerate(self.prior):
                good = bool(row) and all(value < math.inf for value in row) and max(row) > -math.inf
                require(good, f"prior[{h}]", row, "must be logits below infinity that leave some class allowed")

    def remaining(self, step: jax.Array | int, classes: int) -> jax.Array:
        """The share of the preferences that is left after `step` training steps, a float32 scalar.

        As a distribution the prior becomes a mixture of the preferred class and of all C alike, whose share t grows
        linearly over `anneal_steps`: the preferred class is ahead by log(1 + C·(1 - t)/t), where that is less than
        the preference. A linear fall of the logits would change hardly anything at first and everything at the end.
        """
        t = jnp.clip(jnp.asarray(step, jnp.float32) / self.anneal_steps, 0, 1)
        ahead = jnp.log1p(classes * (1 - t) / jnp.maximum(t, 1e-30))
        strongest = max(abs(self.preference), abs(self.skip_preference))
        return jnp.where(t > 0, jnp.minimum(1, ahead / strongest), 1)


@dataclasses.dataclass(frozen=True)
class BalanceConfig:
    """The load-balancing loss C·Σ f_i·P_i over all classes, SKIP and nulls included.

    Attributes:
        weight: its factor in the total loss.
        kind: `global`: over all steps of all chunks together; `depthwise`: the mean of each step's loss.
        softmax_again: take the softmax of scores that already are probabilities once more, as the official code does.
        needs_routed_attention: no balance loss at all where attention is not routed, as in the official code.
        over: the tokens whose means f and P are: of the whole `batch`, whatever it is accumulated from, or of each
            `micro_batch`, over whose losses is averaged, as happens where the official code accumulates. f of the batch
            must be known before the first gradient, so that `batch` costs a second forward pass of each micro-batch.
    """

    weight: float = 0.01
    kind: Literal["global", "depthwise"] = "global"
    over: Literal["batch", "micro_batch"] = "batch"
    softmax_again: bool = False
    needs_routed_attention: bool = False

    def __post_init__(self) -> None:
        check_types(self)
        require(self.weight >= 0, "weight", self.weight, "must be at least 0")
        require(math.isfinite(self.weight), "weight", self.weight, "must be finite")


@dataclasses.dataclass(frozen=True)
class DropoutConfig:
    """Rates: of the embeddings, of attention probabilities, and of sublayer outputs (routed FFNs have none)."""

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
