"""The runs of a study: which there are, where they lie, and which of them begin alike."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mom_jax.fields import require
from train.config import Config
from train.study.definition import Study
from train.training.run import FREE

SHARED = "shared"  # the folder of first phases, beside the studies' own


@dataclasses.dataclass(frozen=True)
class Run:
    """An arm with a seed: the run of its own phases, and the run of its first phase where that is shared."""

    arm: str
    seed: int
    config: Config
    start: Config | None

    @property
    def key(self) -> tuple[str, int]:
        return self.arm, self.seed

    @property
    def folder(self) -> Path:
        return Path(self.config.run)

    def __str__(self) -> str:
        return f"{self.arm}, seed {self.seed}"


@dataclasses.dataclass(frozen=True)
class Plan:
    """A study at one size, in a folder.

    configs: each arm's whole configuration. runs: all seeds of an arm differ by their seed only; seed by seed, so that
    pairs are complete early.
    """

    study: Study
    size: str
    root: Path
    configs: dict[str, Config]
    runs: tuple[Run, ...]

    @property
    def folder(self) -> Path:
        return study_folder(self.study, self.size, self.root)


def study_folder(study: Study, size: str, root: Path) -> Path:
    return root / f"{study.name}-{size}"


def make_plan(study: Study, size: str, root: Path) -> Plan:
    """Raises ConfigError for an unknown size and for arms that cannot be."""
    configs = study.configs(size)
    folder = study_folder(study, size, root) / "runs"
    runs = [
        _run(study, arm.name, configs[arm.name], seed, folder / arm.folder / f"seed-{seed}", root)
        for seed in study.seeds_of(size)
        for arm in study.arms
    ]
    return Plan(study, size, root, configs, tuple(runs))


def _run(study: Study, arm: str, config: Config, seed: int, folder: Path, root: Path) -> Run:
    first, *rest = config.phases
    data = dataclasses.replace(config.data, seed=config.data.seed + 1 + seed)  # not the first phase's order
    start = None
    if rest:
        start = _first_phase(config, seed if study.first_phase_seeded else None, root)
        if rest[0].init_from == "previous":
            rest[0] = dataclasses.replace(rest[0], init_from=start.run)
        if rest[0].distill == "previous":
            rest[0] = dataclasses.replace(rest[0], distill=start.run)
    phases = tuple(rest) or (first,)
    return Run(arm, seed, dataclasses.replace(config, data=data, phases=phases, run=str(folder), seed=seed), start)


def _first_phase(config: Config, seed: int | None, root: Path) -> Config:
    phase = config.phases[0]
    model = config.model
    if phase.model == "vanilla":
        model = model.vanilla()
        phase = dataclasses.replace(phase, optim=dataclasses.replace(phase.optim, router_multiplier=1.0))
    config = dataclasses.replace(config, model=model, phases=(phase,))
    if seed is not None:
        config = dataclasses.replace(config, seed=seed, data=dataclasses.replace(config.data, seed=seed))
    return dataclasses.replace(config, run=str(root / SHARED / f"{phase.name}-{fingerprint(config)}"))


def fingerprint(config: Config) -> str:
    """Twelve letters that tell apart configurations that train differently or are evaluated on other text.

    Of what differs from the defaults, so that results stay when a later version has a field more.
    """
    record = _given(config)
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:12]


def _given(value: Any, path: str = "") -> Any:
    """The fields that are not at their defaults; all of rows, whose defaults say nothing."""
    if isinstance(value, tuple):
        return [_given(item, path) for item in value]
    if not dataclasses.is_dataclass(value):
        return value
    record = {}
    for field in dataclasses.fields(value):
        name, own = f"{path}.{field.name}" if path else field.name, getattr(value, field.name)
        if name in FREE and name != "final_batches":
            continue
        if own != field.default:
            record[field.name] = _given(own, name)
    return record


def dealt(runs: Sequence[Run], shard: str | None) -> list[Run]:
    """The runs of shard `i/n`, i from 1 to n. Raises ConfigError for what is none."""
    if shard is None:
        return list(runs)
    i, _, n = shard.partition("/")
    good = i.isdecimal() and n.isdecimal() and len(n) < 19 and len(i) <= len(n) and 1 <= int(i) <= int(n)
    require(good, "shard", shard, "must be I/N with I from 1 to N")
    return list(runs[int(i) - 1 :: int(n)])
