"""K, H and N: two maps of loss by our recipe, from scratch in one phase.

So no shape starts nearer to the vanilla model than another. At equal parameters: steps by the half FFNs that a step
takes. At equal FLOPs of the FFNs: steps by the parts that an FFN is cut into, of which a step takes as many as keep
H times K times width. Attention is in order, so that its FLOPs go with H.

A vanilla model of half the layers is the control: what fewer steps bring may be what fewer layers do.

Command: python -m train.study configs/studies/shape.py
"""

from configs.studies.setting import VANILLA_AT_ONCE, at_depth, from_scratch, modules, ours, parts, sizes
from train.config import Config
from train.study import Arm, Map, Study, changed


def shaped(share: float, number: int, taken: int) -> Arm:
    """So many steps for each layer that became modules, each of which takes so many of an FFN's parts."""
    change = (at_depth(share), ours(), parts(number, taken), from_scratch)
    return Arm(f"{share:g} steps a layer, {taken} of 1/{number}", change)


def of_half_the_layers(config: Config) -> Config:
    """A model with half as many of the layers that become modules."""
    return changed(config, modules(config.model.num_steps // 2))


def get_study() -> Study:
    halves = {(f"{share:g}", f"{k} of 1/2"): (share, 2, k) for share in (0.5, 1.0, 1.5) for k in (1, 2, 4)}
    finer = {
        (f"{share:g}", f"1/{number}"): (share, number, round(number / share))
        for share, numbers in ((0.5, (1, 2, 4)), (1.0, (1, 2, 4)), (2.0, (2,)))
        for number in numbers
    }
    maps = [("equal parameters", "parts a step", halves), ("equal FLOPs of the FFNs", "parts", finer)]
    return Study(
        name="shape",
        question="How many steps, how many modules a step, and how narrow?",
        base=sizes(steps=200),
        baseline=VANILLA_AT_ONCE.name,
        seeds=(0, 1),
        arms=(
            VANILLA_AT_ONCE,
            Arm("vanilla, half of the layers", (of_half_the_layers, VANILLA_AT_ONCE.config)),
            *(shaped(*shape) for shape in sorted({*halves.values(), *finer.values()})),
        ),
        maps=tuple(
            Map(name, "steps a layer", column, {cell: shaped(*shape).name for cell, shape in shapes.items()})
            for name, column, shapes in maps
        ),
    )
