"""Routers: the official kinds and others, and the official ones' width, with the paper's routing of both sides, K = 2.

Command: python -m train.study configs/studies/routers.py
"""

from typing import Any

from configs.studies.setting import VANILLA, paper, sizes
from train.study import Arm, Study, changed


def router(kind: str, dim: int | None = None, **fields: Any) -> Arm:
    """An arm with the kind, and with the width where it is not the size's own."""
    given = {"kind": kind} | ({} if dim is None else {"dim": dim}) | fields
    name = ", ".join([kind, *([f"R={dim}"] if dim is not None else []), *(f"{k}={v}" for k, v in fields.items())])
    return Arm(name, (paper(top_k=2), {f"model.router.{field}": value for field, value in given.items()}))


def get_study() -> Study:
    base = {size: changed(config, {"analysis.every": 100}) for size, config in sizes().items()}
    return Study(
        name="routers",
        question="Which router learns many-step decisions best, and what is the least that suffices?",
        base=base,
        arms=(
            VANILLA,
            *(router(kind) for kind in ("gru", "mlp", "gru_dev", "gru_random")),
            *(router(kind, dim) for kind in ("gru", "mlp") for dim in (16, 256)),
            *(router(kind) for kind in ("linear", "mingru", "transformer", "hierarchical")),
            router("gru", norm="layer"),
            router("linear", norm="layer", step_bias=2.0),
        ),
    )
