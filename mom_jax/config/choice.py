"""What a side may choose at which step."""

import dataclasses
import math
from typing import TYPE_CHECKING, Literal

from mom_jax.fields import MOST, check_types, require, require_at_most

if TYPE_CHECKING:
    import jax

Side = Literal["attention", "ffn"]
SIDES: tuple[Side, Side] = ("attention", "ffn")


@dataclasses.dataclass(frozen=True)
class ChoiceConfig:
    """What one side (attention or FFN) may choose at which step: a prior on the router's logits.

    Attributes:
        choice: `free`: any class at any step; `ordered`: each step uses a module of its own (a vanilla layer; no router
            is built); `ordered_or_skip`: its own module or SKIP.
        schedule: the module of its own that each of the H steps has. None: step h has module h. Where modules are
            narrower than a layer's FFN (`ModelConfig.module_d_ff`) it names layers, and all G modules that a layer is
            cut into are the step's own.
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
        top_k: K of this side; None: the model's `top_k`.
        scale: multiplies the weights of the chosen modules (DeepSeek-V3's scaling factor, arXiv 2412.19437). With
            as many modules as it takes to do a vanilla sublayer's work, renormalised weights need it to add up to more
            than 1.
        routes: of attention, what is chosen. `all`: queries, keys, values and outputs, as in the paper; `values`:
            values and outputs only (SwitchHead, Csordás et al., arXiv 2312.07987), with the queries and keys of the
            step's own module, by `schedule`: those of different modules have to fit each other in one attention, which
            they never learned in a vanilla model.
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
    top_k: int | None = None
    scale: float = 1.0
    routes: Literal["all", "values"] = "all"

    def __post_init__(self) -> None:
        check_types(self)
        require(self.top_k is None or self.top_k >= 1, "top_k", self.top_k, "must be at least 1, or None")
        require(self.scale > 0, "scale", self.scale, "must be positive")
        require(self.anneal_steps >= 0, "anneal_steps", self.anneal_steps, "must be at least 0")
        require_at_most(self, MOST, "anneal_steps", "top_k")
        share = self.capacity
        require(share is None or 0 < share <= 1, "capacity", share, "must be above 0 and at most 1, or None")
        free = self.choice == "free"
        for name in ("preference", "skip_preference"):
            value = getattr(self, name)
            require(free or value == 0, name, value, "needs choice='free'")
        require(free or self.prior is None, "prior", self.prior, "needs choice='free'")
        if self.prior is not None:
            for h, row in enumerate(self.prior):
                good = bool(row) and all(value < math.inf for value in row) and max(row) > -math.inf
                require(good, f"prior[{h}]", row, "must be logits below infinity that leave some class allowed")

    def remaining(self, step: "jax.Array | int", classes: int) -> "jax.Array":
        """The share of the preferences that is left after `step` training steps, a float32 scalar.

        As a distribution the prior becomes a mixture of the preferred class and of all C alike, whose share t grows
        linearly over `anneal_steps`: the preferred class is ahead by log(1 + C·(1 - t)/t), where that is less than
        the preference. A linear fall of the logits would change hardly anything at first and everything at the end.
        """
        import jax.numpy as jnp  # here: configurations are read without JAX

        t = jnp.clip(jnp.asarray(step, jnp.float32) / self.anneal_steps, 0, 1)
        ahead = jnp.log1p(classes * (1 - t) / jnp.maximum(t, 1e-30))
        strongest = max(abs(self.preference), abs(self.skip_preference))
        return jnp.where(t > 0, jnp.minimum(1, ahead / strongest), 1)
