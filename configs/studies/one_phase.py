"""MoM from scratch in one phase, beside a vanilla model that is trained with the same steps and schedule.

Command: python -m train.study configs/studies/one_phase.py
"""

from configs.studies.setting import (
    LONG_WARM_UP,
    OURS_AT_ONCE,
    OURS_DEEP,
    VANILLA_AT_ONCE,
    from_scratch,
    modules,
    ours,
    ours_wide,
    ours_wide_in_order,
    sizes,
)
from train.study import Arm, Study

_WARM = "vanilla, one phase, long warm-up"

# With it three layers have the FLOPs of `ours_wide_in_order`, the routers' included, to one percent.
_WIDER = {"model.d_ff": 848}


def get_study() -> Study:
    return Study(
        name="one_phase",
        question="What does our recipe give a model that is trained from scratch, in one phase?",
        base=sizes(steps=200),
        baseline=VANILLA_AT_ONCE.name,
        arms=(
            VANILLA_AT_ONCE,
            Arm("vanilla of three layers, one phase", (modules(1), VANILLA_AT_ONCE.config)),
            OURS_AT_ONCE,
            Arm("ours, SKIP, from scratch", (ours(), {"model.skip": True}, from_scratch)),
            Arm("ours, deep, from scratch", (OURS_DEEP.config, from_scratch)),
            Arm("ours, wide, from scratch", (ours_wide(), from_scratch)),
            Arm("ours, wide, attention in order, from scratch", (ours_wide_in_order, from_scratch)),
            Arm(_WARM, (VANILLA_AT_ONCE.config, LONG_WARM_UP), baseline=_WARM),
            Arm(
                "vanilla of three layers, one phase, long warm-up",
                (modules(1), VANILLA_AT_ONCE.config, LONG_WARM_UP),
                baseline=_WARM,
            ),
            Arm(
                "vanilla of three layers, wider FFNs, one phase, long warm-up",
                (modules(1), _WIDER, VANILLA_AT_ONCE.config, LONG_WARM_UP),
                baseline=_WARM,
            ),
            Arm("ours, from scratch, long warm-up", (OURS_AT_ONCE.config, LONG_WARM_UP), baseline=_WARM),
            Arm(
                "ours, wide, attention in order, from scratch, long warm-up",
                (ours_wide_in_order, from_scratch, LONG_WARM_UP),
                baseline=_WARM,
            ),
            Arm("ours, wide, four layers a step, from scratch", (ours_wide(4), from_scratch)),
        ),
        seeds=(0, 1, 2, 3, 4),
    )
