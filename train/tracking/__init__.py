"""Where a run's numbers go beside its own log."""

import dataclasses
import re
from typing import Literal

from mom_jax.fields import check_types, require


@dataclasses.dataclass(frozen=True)
class WandbConfig:
    """Weights & Biases, beside TensorBoard (docs/training.md). Needs the extra `[wandb]`, unless it is off.

    Attributes:
        mode: `off`; `online`; `offline` writes to RUN/wandb, for `wandb sync`.
        project: that the run belongs to.
        entity: the user or team; None: the account's default.
        name: of the run; None: its folder's.
        group: puts runs together, such as the seeds of one experiment.
        tags: by which runs are found.
    """

    mode: Literal["off", "online", "offline"] = "off"
    project: str = "mom_jax"
    entity: str | None = None
    name: str | None = None
    group: str | None = None
    tags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_types(self)
        good = 0 < len(self.project) <= 128 and not re.search(r"[/\\#?%:]", self.project)
        require(good, "project", self.project, "must have 1 to 128 characters, none of / \\ # ? % :")
        for tag in self.tags:
            require(0 < len(tag) <= 64, "tags", tag, "must have 1 to 64 characters each")
