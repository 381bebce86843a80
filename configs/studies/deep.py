"""38 % more depth by our recipe, with more seeds than the main study has, whose runs it takes over.

Command: python -m train.study configs/studies/deep.py
"""

from configs.studies.setting import OURS, OURS_DEEP, VANILLA, sizes
from train.study import Study


def get_study() -> Study:
    return Study(
        name="deep",
        question="Is more depth at equal parameters better than the vanilla model?",
        base=sizes(),
        arms=(VANILLA, OURS, OURS_DEEP),
        seeds=(0, 1, 2, 3, 4),
    )
