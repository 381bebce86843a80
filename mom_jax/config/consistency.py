"""Whether the parts of a model's configuration fit each other."""

from typing import TYPE_CHECKING

from mom_jax.config.choice import SIDES, Side
from mom_jax.fields import require

if TYPE_CHECKING:
    from mom_jax.config.model import ModelConfig


def check_side(config: "ModelConfig", side: Side) -> None:
    """Raises ConfigError, naming the field, where the parts of a configuration do not fit each other on a side."""
    choice, modules, classes = getattr(config, side), config.modules(side), config.classes(side)
    # Without chunks there is no pool.
    if not config.num_chunks:
        return
    if choice.schedule is not None:
        name, given = f"{side}.schedule", choice.schedule
        require(
            len(given) == config.num_steps, name, given, f"must have a module for each of the {config.num_steps} steps"
        )
        layers, grain = config.layers(side), config.grain(side)
        exist = all(0 <= module < layers for module in given)
        what = "modules" if grain == 1 else f"layers of {grain} modules each"
        require(exist, name, given, f"must name {what} from 0 to {layers - 1}")
    if choice.routes == "values":
        _check_values(config, side)
    for name, value in (("exit", choice.exit), ("capacity", choice.capacity)):
        _check_skipping(config, side, f"{side}.{name}", value)
    # A pool of one module is shared by all steps whatever `choice` says.
    if modules == 1:
        return
    if choice.choice != "free" and choice.schedule is None:
        where = f"where {side}.choice={choice.choice!r} and {side}.schedule=None"
        layers = config.layers(side)
        what = "modules" if layers == modules else "layers that its modules are cut from"
        allowed = f"must equal {side}'s {layers} {what} {where}"
        require(config.num_steps == layers, "num_steps", config.num_steps, allowed)
    if choice.choice == "ordered":
        whole = f"must be d_ff={config.inner_width} or None where {side}.choice='ordered': a step has one module there"
        require(config.grain(side) == 1, "module_d_ff", config.module_d_ff, whole)
        return
    if choice.choice == "ordered_or_skip":
        require(config.skip, "skip", config.skip, f"{side}.choice='ordered_or_skip' needs skip=True")
    allowed = f"{side}.skip_preference={choice.skip_preference} needs skip=True"
    require(config.skip or not choice.skip_preference, "skip", config.skip, allowed)
    # Classes may be fewer than modules only where the official code counts them so (router.classes="ffn"); one less
    # makes its SKIP a module, more would leave modules without a class.
    room = (
        classes
        if choice.choice == "free" and not (choice.preference or choice.skip_preference)
        else classes - config.skip
    )
    allowed = f"gives the {side} router too few classes for {modules} modules"
    require(room >= modules, "router.classes", config.router.classes, allowed)
    if choice.prior is not None:
        shape = (len(choice.prior), *{len(row) for row in choice.prior})
        want = (config.num_steps, classes)
        require(shape == want, f"{side}.prior", shape, f"must have the shape (num_steps, classes) = {want}")
    kind = config.router.kind
    require(kind != "hierarchical" or config.skip, "router.kind", kind, "needs skip=True, which it decides about first")
    if config.router.all_modules:
        bias = config.balance.bias_rate
        require(not bias, "balance.bias_rate", bias, "must be 0 with router.all_modules=True, where nothing is ranked")
        allowed = f"needs a class for each of {side}'s {modules} modules"
        require(classes - config.skip >= modules, "router.classes", config.router.classes, allowed)
    else:
        allowed = f"must be at most the {classes} classes of the {side} router"
        top_k, name = config.side_top_k(side), "top_k" if choice.top_k is None else f"{side}.top_k"
        require(top_k <= classes, name, top_k, allowed)


def _check_values(config: "ModelConfig", side: Side) -> None:
    """Checks that the side can have its values alone routed."""
    name = f"{side}.routes"
    require(side == "attention", name, "values", "needs queries and keys; an FFN has only 'all'")
    require(config.kind(side) == "routed", name, "values", f"needs a router on the {side} side, and there is none")
    modules, steps = config.modules(side), config.num_steps
    allowed = f"needs one of the {modules} modules for each of the {steps} steps: as many, or {side}.schedule"
    require(max(config.schedule(side)) < modules, name, "values", allowed)


def _check_skipping(config: "ModelConfig", side: Side, name: str, value: object) -> None:
    """Checks what makes tokens skip, on the side or, where they leave, on both."""
    if not value:
        return
    require(config.skip, name, value, "needs skip=True")
    require(not config.router.all_modules, name, value, "needs router.all_modules=False")
    for needed in SIDES if name.endswith("exit") else (side,):
        one = config.modules(needed) == 1
        have = "its pool has one module" if one else f"{needed}.choice={getattr(config, needed).choice!r} has none"
        require(config.kind(needed) == "routed", name, value, f"needs a router on the {needed} side; {have}")
