"""This library's recipe for phase 2: routing that did better than the vanilla model trained on (docs/training.md)."""

import dataclasses
import math
from typing import Any

from mom_jax.config import BalanceConfig, ChoiceConfig, ModelConfig, RouterConfig
from mom_jax.fields import require

STEP_BIAS = 2.0  # logits by which a step prefers its own modules at first


def in_turn(layers: int, steps: int) -> tuple[int, ...]:
    """The layer whose modules are each step's own: all in order, some twice or more in a row where there are more steps
    than layers, some left out where there are fewer."""
    return tuple(h * layers // steps for h in range(steps))


def recommended(config: ModelConfig, *, parts: int = 1, taken: int | None = None, **router: Any) -> ModelConfig:
    """The model with attention in order and routed FFNs, which starts near the vanilla model whose layers it takes.

    Scores are sigmoids (MoEUT, arXiv 2405.16039) of one linear map of the normalised stream, and multiply as they are.
    A trained bias of each step prefers its own layer's modules, which weigh 1 at first but for the map's random
    weights; with `score_init=0.0` they weigh 1, and the start is the vanilla model. Nothing is annealed, and no token
    skips. Parameters are the vanilla model's, routers aside; so are the FLOPs unless more modules are `taken`.
    With another number of steps than layers that became modules the steps go through these in turn (`in_turn`).

    parts: FFN modules that a layer is cut into (`module_d_ff`). taken: K of the FFN side, by default `parts`. router:
    other fields of the routers. Raises ConfigError where d_ff is no multiple of `parts`.
    """
    width = config.inner_width
    require(parts >= 1 and width % parts == 0, "parts", parts, f"must divide d_ff={width}")
    scores: dict[str, Any] = {"kind": "linear", "norm": "layer", "scoring": "sigmoid", "step_bias": STEP_BIAS}
    scores |= {"dim": config.router.dim, "temperature": 1.0} | router
    bias = scores["step_bias"] or 0.0
    layers, steps = config.num_attn_modules, config.num_steps
    schedule = None if steps == layers else in_turn(layers, steps)
    return dataclasses.replace(
        config,
        attention=ChoiceConfig(choice="ordered", schedule=schedule),
        ffn=ChoiceConfig(schedule=schedule, top_k=parts if taken is None else taken, scale=1 + math.exp(-bias)),
        num_ffn_modules=parts * config.num_attn_modules,
        module_d_ff=None if parts == 1 else width // parts,
        skip=False,
        router=RouterConfig(**scores),
        balance=BalanceConfig(weight=0.001),
    )
