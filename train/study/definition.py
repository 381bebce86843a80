"""`Study`: a question, and the arms that answer it."""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from mom_jax.fields import ConfigError, nearest, require
from train.cli import load_from
from train.config import Config, Phase
from train.study.changes import changed

Change = Callable[[Config], Config] | Mapping[str, Any]


class After(Protocol):
    """Something that is done with each run's last checkpoint.

    name: short; the table has it. settings: what its result depends on, as JSON: results of other settings are made
    again.
    """

    @property
    def name(self) -> str: ...

    def settings(self) -> dict[str, Any]: ...

    def __call__(self, run: Path, seed: int) -> dict[str, float]:
        """Metrics of the model in the run's folder, of which higher is better."""
        ...


@dataclasses.dataclass(frozen=True)
class Arm:
    """One way to do it.

    Attributes:
        name: as the table has it.
        change: what it does to the study's configuration: fields by their dotted names (`changes.changed`), a function
            Config -> Config, or several of these, one after the other.
        phases: its own phases, in place of the configuration's, before `change`.
        baseline: the arm that it is compared with, by default the study's; an arm may be its own, and that of others.
    """

    name: str
    change: Change | Sequence[Change] = ()
    phases: tuple[Phase, ...] | None = None
    baseline: str = ""

    @property
    def folder(self) -> str:
        """The name as a folder has it."""
        return re.sub(r"[^A-Za-z0-9.=_+-]+", "_", self.name).strip("_.")

    def config(self, base: Config) -> Config:
        """Raises ConfigError, naming the arm, for what cannot be."""
        try:
            config = base if self.phases is None else dataclasses.replace(base, phases=self.phases)
            changes = (self.change,) if callable(self.change) or isinstance(self.change, Mapping) else self.change
            for change in changes:
                config = change(config) if callable(change) else changed(config, change)
        except ConfigError as error:
            raise ConfigError(f"arm {self.name!r}: {error}") from None
        if not isinstance(config, Config):
            raise ConfigError(f"arm {self.name!r}: its change must return a Config, not {type(config).__name__}")
        return config


@dataclasses.dataclass(frozen=True)
class Map:
    """Losses of arms that differ in two things.

    Attributes:
        name: as the table has it.
        row, column: what differs from row to row, and from column to column.
        arms: by the names of a row and a column; both in the order in which they come first. Some may be missing.
    """

    name: str
    row: str
    column: str
    arms: Mapping[tuple[str, str], str]

    @property
    def rows(self) -> list[str]:
        return list(dict.fromkeys(row for row, _ in self.arms))

    @property
    def columns(self) -> list[str]:
        return list(dict.fromkeys(column for _, column in self.arms))


@dataclasses.dataclass(frozen=True)
class Study:
    """Arms that are trained alike, each with the same seeds, and compared with one of them, or each with its own one.

    Of a configuration with several phases the first is shared: it is trained once (with the configuration's own seeds)
    for all arms, seeds and studies in which it is the same, and the others start from it. They, or the only phase, are
    trained once with each seed: `seed` itself, for new parameters, and the configuration's `data.seed` + 1 + seed for
    the order of the batches, alike in all arms.

    Attributes:
        name: of its folder.
        question: one sentence.
        base: by the size's name the configuration that the arms change.
        arms: in the order of the table.
        baseline: the arm that the others are compared with, unless they name another; by default the first.
        seeds: of every size, or by the size's name.
        first_phase_seeded: the first phase is trained with each seed too, not once.
        after: what is done with each run's last checkpoint.
        needs: files or folders without which nothing is trained, with what to do where one is missing.
        maps: losses by two properties of the arms, beside the table of all arms.
    """

    name: str
    question: str
    base: Mapping[str, Config]
    arms: tuple[Arm, ...]
    baseline: str = ""
    seeds: tuple[int, ...] | Mapping[str, tuple[int, ...]] = (0, 1, 2)
    first_phase_seeded: bool = False
    after: tuple[After, ...] = ()
    needs: Mapping[str, str] = dataclasses.field(default_factory=dict)
    maps: tuple[Map, ...] = ()

    def __post_init__(self) -> None:
        plain = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", self.name) is not None
        require(plain, "name", self.name, "must be a plain word")
        require(len(self.base) > 0, "base", self.base, "must have at least one size")
        require(len(self.arms) > 0, "arms", self.arms, "must have at least one")
        names, folders = [arm.name for arm in self.arms], [arm.folder.lower() for arm in self.arms]
        require(all(folders), "arms", names, "must have names with letters or digits")
        require(len(set(folders)) == len(folders), "arms", names, "must have names that differ in letters or digits")
        if not self.baseline:
            object.__setattr__(self, "baseline", names[0])
        require(self.baseline in names, "baseline", self.baseline, f"must be an arm; {nearest(self.baseline, names)}")
        for arm in self.arms:
            known = not arm.baseline or arm.baseline in names
            require(
                known, f"arm {arm.name!r}: baseline", arm.baseline, f"must be an arm; {nearest(arm.baseline, names)}"
            )
        if isinstance(self.seeds, Mapping):
            require(set(self.seeds) == set(self.base), "seeds", self.seeds, f"must be for {', '.join(self.base)}")
        for size in self.base:
            seeds = self.seeds_of(size)
            require(len(seeds) > 0 and len(set(seeds)) == len(seeds), "seeds", seeds, "must be different, one or more")
            require(min(seeds) >= 0, "seeds", seeds, "must be at least 0")
        after = [task.name for task in self.after]
        require(len(set(after)) == len(after), "after", after, "must have different names")
        for name in (name for own in self.maps for name in own.arms.values()):
            require(name in names, "maps", name, f"must be an arm; {nearest(name, names)}")

    def seeds_of(self, size: str) -> tuple[int, ...]:
        return self.seeds[size] if isinstance(self.seeds, Mapping) else self.seeds

    @property
    def baselines(self) -> dict[str, str]:
        """By arm the one that it is compared with; itself for a baseline."""
        return {arm.name: arm.baseline or self.baseline for arm in self.arms}

    def configs(self, size: str) -> dict[str, Config]:
        """Each arm's configuration. Raises ConfigError for an unknown size and an arm that cannot be."""
        require(size in self.base, "size", size, f"unknown; {nearest(size, self.base)}")
        return {arm.name: arm.config(self.base[size]) for arm in self.arms}


def load_study(path: str) -> Study:
    """`get_study()` of a Python file. Raises ConfigError where there is none."""
    return load_from(path, "get_study", Study, field="study")
