"""Routers: kinds, widths and starts, with the paper's routing of both sides, K = 2.

Command: python -m train.study configs/studies/routers.py
"""

from typing import Any

from configs.studies.setting import VANILLA, paper, router, sizes
from train.study import Arm, Study


def routed_by(kind: str, dim: int | None = None, **fields: Any) -> Arm:
    """An arm with the kind, and with the width where it is not the size's own."""
    given = {"kind": kind} | ({} if dim is None else {"dim": dim}) | fields
    name = ", ".join([kind, *([f"R={dim}"] if dim is not None else []), *(f"{k}={v}" for k, v in fields.items())])
    return Arm(name, (paper(top_k=2), router(**given)))


def get_study() -> Study:
    return Study(
        name="routers",
        question="Which router learns many-step decisions best, and what is the least that suffices?",
        base=sizes(steps=200),
        arms=(
            VANILLA,
            *(routed_by(kind) for kind in ("gru", "mlp", "gru_dev", "gru_random")),
            *(routed_by(kind, dim) for kind in ("gru", "mlp") for dim in (16, 256)),
            *(routed_by(kind) for kind in ("linear", "mingru", "transformer", "hierarchical")),
            routed_by("gru", norm="layer"),
            routed_by("linear", norm="layer", step_bias=2.0),
            *(routed_by(kind, score_init=0.2) for kind in ("gru", "mlp")),
        ),
    )
