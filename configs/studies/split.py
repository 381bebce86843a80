"""How the steps are best divided: none to three quarters of them for the vanilla model, the rest for MoM by our recipe.

Each phase has a schedule of its own, as in configs/studies/phases.py, whose two phases are the longest first one here.

Command: python -m train.study configs/studies/split.py
"""

from collections.abc import Callable

from configs.studies.setting import OURS_AT_ONCE, VANILLA_AT_ONCE, ours, sizes
from train.config import Config
from train.study import Arm, Study, changed


def divided(quarters: int) -> Callable[[Config], Config]:
    """So many quarters of all steps for the first phase, and the rest for the second."""

    def change(config: Config) -> Config:
        steps = sum(phase.steps for phase in config.phases)
        first = steps * quarters // 4
        return changed(config, {"phases.pretrain.steps": first, "phases.mom.steps": steps - first})

    return change


def get_study() -> Study:
    return Study(
        name="split",
        question="How long should the first phase be?",
        base=sizes(steps=200),
        baseline=VANILLA_AT_ONCE.name,
        arms=(
            VANILLA_AT_ONCE,
            OURS_AT_ONCE,
            *(Arm(f"ours after {quarters}/4 of the steps", (divided(quarters), ours())) for quarters in (1, 2, 3)),
        ),
    )
