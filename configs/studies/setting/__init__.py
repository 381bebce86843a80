"""What the studies share: their sizes, and the two recipes.

`small` is for two CPU cores: the quickstart's data and width, one anchor, six layers that become modules, one anchor;
600 steps of the vanilla model, which all arms share, and 400 steps of each arm, or 200 in studies of many arms. `full`
is the paper's small model on OpenWebText (configs/paper_routing/small.py), for a pod.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from configs import quickstart_paper
from configs.paper_routing import small as paper_small
from mom_jax.config import BalanceConfig, ChoiceConfig, ModelConfig, RouterConfig
from mom_jax.interop.recipe import recommended
from train.config import AnalysisConfig, Config
from train.study import Arm, changed

DEEPER, SHALLOWER = 1.38, 0.4  # times the vanilla model's layers: the paper's deep and wide models

VANILLA = Arm("vanilla", {"phases.mom.model": "vanilla", "phases.mom.optim.router_multiplier": 1.0})


def modules(number: int) -> dict[str, int]:
    """So many layers between the anchors, which become modules."""
    return dict.fromkeys(("model.num_attn_modules", "model.num_ffn_modules", "model.num_steps"), number)


def sizes(steps: int = 400) -> dict[str, Config]:
    """The configurations that arms change, by size. steps: of the small one's arms after the shared phase."""
    small = changed(
        quickstart_paper.get_config(),
        {
            **modules(6),
            "model.top_k": 1,
            "phases.pretrain.steps": 600,
            "phases.mom.steps": steps,
            "checkpoint.every": 200,
            "analysis": AnalysisConfig(every=100),
        },
    )
    return {"small": small, "full": changed(paper_small.get_config(), {"model.num_steps": 8})}


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
    """So many steps for each layer that became modules."""
    return lambda config: changed(config, {"model.num_steps": max(1, round(share * config.model.num_attn_modules))})


def wide(config: Config) -> Config:
    """60 % less depth than the vanilla model, three modules a step, equal parameters."""
    return changed(config, {"model.num_steps": steps_for(config.model, SHALLOWER), "model.top_k": 3})


def ours(**router: Any) -> Callable[[Config], Config]:
    """Our recipe (`mom_jax.interop.recipe`), with FFN modules of half a layer's width, of which each step takes two;
    with further fields of the `router`."""
    return lambda config: changed(config, {"model": recommended(config.model, parts=2, **router)})


OURS = Arm("ours", ours())
OURS_DEEP = Arm("ours, deep", (deep, ours()))


def ours_wide(layers: int = 3) -> Callable[[Config], Config]:
    """60 % less depth by our recipe, so many layers' work a step on both sides. Attention is routed too: a step that
    stands for several layers has no module of its own, and none is preferred."""

    def change(config: Config) -> Config:
        attention = ChoiceConfig(top_k=layers, scale=2.0)
        cut = recommended(config.model, parts=2, taken=2 * layers, step_bias=None)
        ffn = dataclasses.replace(cut.ffn, scale=2.0)
        steps = steps_for(config.model, SHALLOWER)
        return changed(config, {"model": dataclasses.replace(cut, attention=attention, ffn=ffn, num_steps=steps)})

    return change


def ours_wide_in_order(config: Config) -> Config:
    """60 % less depth by our recipe, with attention in order: three layers' FFNs a step, and one layer's attention. The
    attention of the other layers has nothing to do."""
    shallow = dataclasses.replace(config.model, num_steps=steps_for(config.model, SHALLOWER))
    return changed(config, {"model": recommended(shallow, parts=2, taken=6, step_bias=None)})


def from_scratch(config: Config) -> Config:
    """One phase of the steps of both, by the first one's schedule."""
    first, second = config.phases
    steps = first.steps + second.steps
    multiplier = second.optim.router_multiplier
    optim = dataclasses.replace(first.optim, router_multiplier=multiplier)
    return dataclasses.replace(
        config, phases=(dataclasses.replace(second, steps=steps, init_from="scratch", optim=optim),)
    )


VANILLA_AT_ONCE = Arm("vanilla, one phase", ({"phases.mom.model": "vanilla"}, from_scratch))
OURS_AT_ONCE = Arm("ours, from scratch", (ours(), from_scratch))

LONG_WARM_UP = {"phases.0.optim.warmup_steps": 200}  # in place of 50 at the small size


def parts(number: int, taken: int | None = None) -> Callable[[Config], Config]:
    """FFN modules of another part of a layer's width than our recipe's, of which a step takes `taken`, by default all
    of a layer."""

    def change(config: Config) -> Config:
        cut = recommended(config.model, parts=number, taken=taken)
        fields = {f"model.{name}": getattr(cut, name) for name in ("num_ffn_modules", "ffn")}
        return changed(config, fields | {"model.module_d_ff": config.model.inner_width // number})

    return change


def router(**fields: Any) -> dict[str, Any]:
    """Other fields of the router."""
    return {f"model.router.{name}": value for name, value in fields.items()}
