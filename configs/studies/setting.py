"""What the studies share: their sizes, and the two recipes.

`small` is for two CPU cores: the quickstart's data and width, one anchor, six layers that become modules, one anchor;
600 steps of the vanilla model, which all arms share, and 400 steps of each arm, or 200 in studies of many arms. `full`
is the paper's small model on OpenWebText (configs/mom_small.py), for a pod.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from configs import mom_small, quickstart
from mom_jax.config import BalanceConfig, ChoiceConfig, ModelConfig, RouterConfig
from train.config import AnalysisConfig, Config
from train.study import Arm, changed

DEEPER, SHALLOWER = 1.38, 0.4  # times the vanilla model's layers: the paper's deep and wide models

STEP_BIAS = 2.0  # logits by which our recipe prefers a step's own modules at first

VANILLA = Arm("vanilla", {"phases.mom.model": "vanilla", "phases.mom.optim.router_multiplier": 1.0})


def sizes(steps: int = 400) -> dict[str, Config]:
    """The configurations that arms change, by size. steps: of the small one's arms after the shared phase."""
    small = changed(
        quickstart.get_config(),
        {
            "model.num_attn_modules": 6,
            "model.num_ffn_modules": 6,
            "model.num_steps": 6,
            "model.top_k": 1,
            "phases.pretrain.steps": 600,
            "phases.mom.steps": steps,
            "checkpoint.every": 200,
            "analysis": AnalysisConfig(every=100),
        },
    )
    return {"small": small, "full": changed(mom_small.get_config(), {"model.num_steps": 8})}


def paper(**fields: Any) -> Callable[[Config], Config]:
    """The paper's recipe: the authors' routing in every detail (`ModelConfig.official`), temperature 0.2, balance loss
    0.01; with further `fields` of the model."""

    def change(config: Config) -> Config:
        given = {f.name: getattr(config.model, f.name) for f in dataclasses.fields(ModelConfig)} | fields
        router = RouterConfig(dim=config.model.router.dim, temperature=0.2)
        model = ModelConfig.official(**given | {"router": router, "balance": BalanceConfig(weight=0.01)})
        return changed(config, {"model": model, "phases.mom.optim.router_multiplier": 1.0})

    return change


def steps_for(model: ModelConfig, depth: float) -> int:
    """H with which a token passes through `depth` times the vanilla model's layers, rounded."""
    return max(1, round(depth * model.num_layers) - (model.num_layers - model.pool_size))


def deep(config: Config) -> Config:
    """38 % more depth than the vanilla model, equal parameters."""
    return changed(config, {"model.num_steps": steps_for(config.model, DEEPER)})


def at_depth(share: float) -> Callable[[Config], Config]:
    """So many steps for each layer that became modules, and steps with modules of their own: the layers in order, some
    of them twice in a row or left out."""

    def change(config: Config) -> Config:
        layers = config.model.num_attn_modules
        steps = max(1, round(share * layers))
        own = tuple(h * layers // steps for h in range(steps))
        return changed(config, {"model.num_steps": steps, "model.attention.schedule": own, "model.ffn.schedule": own})

    return change


def deep_in_turn(config: Config) -> Config:
    """38 % more depth where steps have modules of their own."""
    return at_depth(steps_for(config.model, DEEPER) / config.model.num_attn_modules)(config)


def wide(config: Config) -> Config:
    """60 % less depth than the vanilla model, three modules a step, equal parameters."""
    return changed(config, {"model.num_steps": steps_for(config.model, SHALLOWER), "model.top_k": 3})


def ours(**router: Any) -> Callable[[Config], Config]:
    """Our recipe, as far as configs/studies/recipe.py has found one: attention in order, and FFN modules of half a
    layer's width, of which each step takes two. Scores are sigmoids that weigh as they are, and a trained bias per step
    prefers the step's own modules: it starts as the vanilla model. With further fields of the `router`."""

    scores: dict[str, Any] = {"kind": "linear", "norm": "layer", "scoring": "sigmoid", "step_bias": STEP_BIAS}

    def change(config: Config) -> Config:
        return changed(
            config,
            {
                "model.attention": ChoiceConfig(choice="ordered"),
                "model.skip": False,
                "model.router": RouterConfig(**{"dim": config.model.router.dim, "temperature": 1.0} | scores | router),
                "model.balance": BalanceConfig(weight=0.001),
                **grain(config.model, 2),
            },
        )

    return change


def parts(number: int, taken: int | None = None) -> Callable[[Config], Config]:
    """FFN modules of another part of a layer's width than our recipe's."""
    return lambda config: changed(config, grain(config.model, number, taken))


def router(**fields: Any) -> dict[str, Any]:
    """Other fields of the router."""
    return {f"model.router.{name}": value for name, value in fields.items()}


def grain(model: ModelConfig, parts: int, taken: int | None = None) -> dict[str, Any]:
    """FFN modules of one part of a layer's width, of which a step takes `taken`, by default all of a layer."""
    k = parts if taken is None else taken
    # Own modules weigh 1 at first, whatever K.
    return {
        "model.num_ffn_modules": parts * model.num_attn_modules,
        "model.module_d_ff": model.inner_width // parts,
        "model.ffn": ChoiceConfig(top_k=k, scale=1 + math.exp(-STEP_BIAS)),
    }
