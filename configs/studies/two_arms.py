"""Two arms of a tiny model with two seeds, to see a study at work in a minute: no result.

Command: python -m train.study configs/studies/two_arms.py
"""

from configs import quickstart_paper
from mom_jax.config import RouterConfig
from train.config import AnalysisConfig, Config
from train.study import Arm, Study, changed


def _tiny() -> Config:
    return changed(
        quickstart_paper.get_config(),
        {
            "model.d_model": 32,
            "model.num_heads": 2,
            "model.router": RouterConfig(dim=16, temperature=1.0),
            "model.remat": "none",
            "data.batch_size": 4,
            "data.length": 64,
            "phases.pretrain.steps": 20,
            "phases.pretrain.optim.warmup_steps": 5,
            "phases.mom.steps": 20,
            "phases.mom.optim.warmup_steps": 5,
            "checkpoint.every": 5,
            "analysis": AnalysisConfig(every=0),
            "evaluate_every": 10,
            "final_batches": 8,
        },
    )


def get_study() -> Study:
    return Study(
        name="two_arms",
        question="Does the study program work?",
        base={"small": _tiny()},
        arms=(
            Arm("vanilla", {"phases.mom.model": "vanilla"}),
            Arm("K=1", {"model.top_k": 1}),
        ),
        seeds=(0, 1),
    )
