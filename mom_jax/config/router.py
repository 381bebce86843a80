"""How routers score, and what a choice weighs."""

import dataclasses
from typing import Literal

from mom_jax.fields import check_types, require


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
