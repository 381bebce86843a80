"""K, H and N: two maps of loss by our recipe.

One at equal parameters: steps by modules that a step takes. One at equal FLOPs of the FFNs: steps by the parts that an
FFN is cut into, with as many parts a step as keep H·K·width.

Command: python -m train.study configs/studies/shape.py
"""

from configs.studies.setting import VANILLA, at_depth, ours, parts, sizes
from train.study import Arm, Study


def get_study() -> Study:
    equal_parameters = [
        Arm(f"H={share:g} of the layers, K={k} halves", (ours(), parts(2, k), at_depth(share)))
        for share in (0.5, 1.0, 1.5)
        for k in (1, 2, 4)
    ]
    equal_flops = [
        Arm(
            f"H={share:g} of the layers, K={round(number / share)} of 1/{number}",
            (ours(), parts(number, round(number / share)), at_depth(share)),
        )
        for share, numbers in ((0.5, (1, 4)), (1.0, (1, 4, 8)), (2.0, (2, 4, 8)))
        for number in numbers
    ]
    return Study(
        name="shape",
        question="How many steps, how many modules a step, and how narrow?",
        base=sizes(steps=200),
        seeds=(0, 1),
        arms=(VANILLA, *equal_parameters, *equal_flops),
    )
