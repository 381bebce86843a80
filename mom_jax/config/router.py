"""How routers score, and what a choice weighs."""

import dataclasses
import math
from typing import TYPE_CHECKING, Literal

from mom_jax.fields import MOST, check_types, require, require_at_most

if TYPE_CHECKING:
    import jax

# The kinds of routers by name, with their classes, which register themselves (mom_jax/routers/registry.py).
KINDS: dict[str, type | None] = dict.fromkeys(
    ("linear", "mlp", "gru", "gru_dev", "gru_random", "mingru", "transformer", "hierarchical")
)


@dataclasses.dataclass(frozen=True)
class RouterConfig:
    """How a router scores the classes of its side (paper section 3.2; both sides have the same kind of router).

    Attributes:
        kind: the name of a registered router (docs/routers.md). Without a state: `linear`, `mlp`. With one over the
            assembly steps: `gru`; `gru_dev` drops the recurrence from the candidate; `gru_random` mixes uniform noise
            into the state; `mingru`; `transformer`; `hierarchical`, a GRU that first decides about SKIP. Or one of
            your own.
        dim: R, the width of the hidden layer or of the state.
        heads: of the attention of `transformer`; must divide `dim` there.
        norm: `layer`: routers read the residual stream with zero mean and unit variance, by the statistics of a layer
            norm without scale and bias, which a router's first linear map can express; `none`: as it is.
        step_bias: a learned bias of each step and class, added to the logits after the temperature, of this value at
            first where the step has a module of its own (at SKIP, where it has none), else 0. None: there is none.
            It prefers as `preference` of a side does, but is trained, and counts in what a choice weighs.
        score_init: the standard deviation of the first weights of the last map, from hidden layer or stream to logits.
            0: no token differs from another; a router with `step_bias` begins with its biases alone.
        scoring: `softmax` of logits / temperature; `sigmoid` of each logit / temperature by itself (sigma-MoE, arXiv
            2310.10837); or `raw` scores.
        temperature: divides the logits before softmax or sigmoid.
        weights: what multiplies a chosen module's output. `renormalised`: its score over the sum of the K chosen (null
            classes included); `probability`: the probability, or the sigmoid, itself; `raw`: the raw score. `auto`:
            `raw` with raw scoring, `probability` with sigmoid, and with softmax `probability` at K = 1 (where the
            renormalised weight is constantly 1 and the language-model loss would give the router no gradient) and
            `renormalised` at K > 1.
        noise: in training, the standard deviation of Gaussian noise on the logits that rank, after the temperature
            (noisy top-k gating, arXiv 1701.06538); what a choice weighs is without it, and so is what is reported.
        noise_steps: training steps over which `noise` falls linearly to 0; 0 keeps it.
        straight_through: multiply by the weight's sign; the gradient passes to the weight, clamped to [-1, 1] per
            token and module.
        all_modules: every token uses every module, weighted by its score; `top_k` and `weights` have no say.
        classes: how many classes a router scores, SKIP aside: its `own` side's modules, the `max` of both sides', or
            the `ffn` side's (the last two as the official code has them; classes without a module are null).
        noise_in_evaluation: whether `gru_random` needs noise in evaluation too; otherwise its mean, 1/2, is used
            there.
    """

    kind: str = "gru"
    dim: int = 256
    scoring: Literal["softmax", "sigmoid", "raw"] = "softmax"
    temperature: float = 0.2
    weights: Literal["auto", "renormalised", "probability", "raw"] = "auto"
    straight_through: bool = False
    all_modules: bool = False
    classes: Literal["own", "max", "ffn"] = "own"
    noise_in_evaluation: bool = False
    heads: int = 1
    norm: Literal["none", "layer"] = "none"
    step_bias: float | None = None
    noise: float = 0.0
    noise_steps: int = 0
    score_init: float = 0.02

    def __post_init__(self) -> None:
        check_types(self)
        own = "import the module that registers your own (--import FILE)"
        known = f"must be a registered router: {', '.join(KINDS)}; {own}"
        require(self.kind in KINDS, "kind", self.kind, known)
        for name in ("dim", "heads"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "must be at least 1")
        divides = self.kind != "transformer" or self.dim % self.heads == 0
        require(divides, "heads", self.heads, f"must divide dim={self.dim}")
        require_at_most(self, MOST, "dim", "heads", "noise_steps")
        # In float32, with which logits are divided by it.
        require(self.temperature >= 1e-30, "temperature", self.temperature, "must be positive")
        allowed = ("auto", "raw") if self.scoring == "raw" else ("auto", "renormalised", "probability")
        require(self.weights in allowed, "weights", self.weights, f"with scoring={self.scoring!r} use one of {allowed}")
        softmax = self.kind != "hierarchical" or self.scoring == "softmax"
        require(softmax, "scoring", self.scoring, "must be 'softmax' with kind='hierarchical', which has probabilities")
        bias = self.step_bias
        require(bias is None or math.isfinite(bias), "step_bias", bias, "must be finite, or None")
        require(0 <= self.score_init < math.inf, "score_init", self.score_init, "must be at least 0")
        require(0 <= self.noise < math.inf, "noise", self.noise, "must be at least 0")
        require(self.noise_steps >= 0, "noise_steps", self.noise_steps, "must be at least 0")
        ranks = not (self.noise and self.all_modules)
        require(ranks, "noise", self.noise, "must be 0 with all_modules=True, where nothing is ranked")

    def noise_at(self, step: "jax.Array | int | None") -> "jax.Array":
        """The noise's standard deviation after `step` training steps (None: at the beginning), a float32 scalar."""
        import jax.numpy as jnp  # here: configurations are read without JAX

        noise = jnp.float32(self.noise)
        if step is None or not self.noise_steps:
            return noise
        return noise * jnp.clip(1 - jnp.asarray(step, jnp.float32) / self.noise_steps, 0, 1)
