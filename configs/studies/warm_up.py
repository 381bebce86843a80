"""Whether the main table holds for models whose first phase has a longer warm-up, which all others would gain from.

Arms with the main study's warm-up are its runs.

Command: python -m train.study configs/studies/warm_up.py
"""

from configs.studies.setting import OURS, VANILLA, ours_wide_in_order, paper, sizes
from train.study import Arm, Study

LONG = {"phases.pretrain.optim.warmup_steps": 200}  # in place of 50; of 600 at the small size


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
            Arm(warm, (VANILLA.config, LONG), baseline=warm),
            Arm("ours, long warm-up", (OURS.config, LONG), baseline=warm),
            Arm("paper, K=2, long warm-up", (paper(top_k=2), LONG), baseline=warm),
            Arm("ours, wide, attention in order", ours_wide_in_order),
            Arm("ours, wide, attention in order, long warm-up", (ours_wide_in_order, LONG), baseline=warm),
        ),
        seeds=(0, 1, 2, 3, 4),
    )
