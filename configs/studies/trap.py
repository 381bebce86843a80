"""The trap of K = 1 and the ways out of it.

A single chosen module's renormalised weight is always 1, so that the language model's loss teaches the routers nothing.

Command: python -m train.study configs/studies/trap.py
"""

from configs.studies.setting import VANILLA, paper, router, sizes
from mom_jax.config import BalanceConfig
from train.study import Arm, Study


def get_study() -> Study:
    return Study(
        name="trap",
        question="What do routers need in order to learn where a token takes one module?",
        base=sizes(steps=200),
        arms=(
            VANILLA,
            Arm("renormalised", paper()),
            Arm("renormalised, no balance loss", (paper(), {"model.balance": BalanceConfig(weight=0.0)})),
            Arm("probability", (paper(), router(weights="probability"))),
            Arm("probability, T=1", (paper(), router(weights="probability", temperature=1.0))),
            Arm("straight-through", (paper(), router(weights="probability", straight_through=True))),
            Arm("raw scores", (paper(), router(scoring="raw", weights="raw"))),
            Arm("sigmoid", (paper(), router(scoring="sigmoid", weights="probability", temperature=1.0))),
            Arm("K=2", paper(top_k=2)),
        ),
    )
