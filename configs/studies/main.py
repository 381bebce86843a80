"""The main table: from the same vanilla model, the vanilla model trained on, MoM by the paper's recipe, and by ours.

Command: python -m train.study configs/studies/main.py
"""

from configs.studies.setting import VANILLA, deep, paper, sizes, wide
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
        ),
    )
