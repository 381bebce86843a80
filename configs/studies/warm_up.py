"""Whether the main table holds for models whose first phase has a longer warm-up, which all others would gain from.

Arms with the main study's warm-up are its runs.

Command: python -m train.study configs/studies/warm_up.py
"""

from configs.studies.setting import LONG_WARM_UP, OURS, VANILLA, ours_wide_in_order, paper, sizes
from train.study import Arm, Study


def get_study() -> Study:
    warm = "vanilla, long warm-up"
    return Study(
        name="warm_up",
        question="Does what MoM gains or loses depend on the first phase's warm-up?",
        base=sizes(),
        arms=(
            VANILLA,
            OURS,
            Arm("paper, K=2", paper(top_k=2)),
            Arm(warm, (VANILLA.config, LONG_WARM_UP), baseline=warm),
            Arm("ours, long warm-up", (OURS.config, LONG_WARM_UP), baseline=warm),
            Arm("paper, K=2, long warm-up", (paper(top_k=2), LONG_WARM_UP), baseline=warm),
            Arm("ours, wide, attention in order", ours_wide_in_order),
            Arm("ours, wide, attention in order, long warm-up", (ours_wide_in_order, LONG_WARM_UP), baseline=warm),
        ),
        seeds=(0, 1, 2, 3, 4),
    )
