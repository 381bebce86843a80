"""The main table: from the same vanilla model, the vanilla model trained on, MoM by the paper's recipe, and by ours.

Command: python -m train.study configs/studies/main.py
"""

from configs.studies.setting import OURS, OURS_DEEP, VANILLA, deep, ours, ours_wide, paper, parts, sizes, wide
from train.study import Arm, Study


def get_study() -> Study:
    return Study(
        name="main",
        question="Is a MoM better than the vanilla transformer that it starts from, both trained on?",
        base=sizes(),
        arms=(
            VANILLA,
            *(Arm(f"paper, K={k}", paper(top_k=k)) for k in (1, 2, 3)),
            Arm("paper, deep", (paper(), deep)),
            Arm("paper, wide", (paper(top_k=3), wide)),
            OURS,
            Arm("ours, K=4", (ours(), parts(2, 4))),
            Arm("ours, SKIP", (ours(), {"model.skip": True})),
            OURS_DEEP,
            Arm("ours, wide", ours_wide()),
        ),
    )
