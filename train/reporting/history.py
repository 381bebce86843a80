"""What a run's metrics say: its records by phase, in the order of training."""

import contextlib
import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mom_jax.analysis.cost import parameter_count
from mom_jax.config import SIDES, ModelConfig
from mom_jax.fields import MOST, ConfigError, from_dict
from train.config import Config
from train.files import read_json
from train.reporting.metrics import FILE, read

Record = dict[str, Any]


class Run:
    """The records by phase, in the order of training, and where each phase starts. What has changed since it was
    written, and so is left out, is told.

    Raises FileNotFoundError or ConfigError where the folder has no readable metrics.
    """

    def __init__(self, folder: Path) -> None:
        self.name = folder.resolve().name
        self.records = [r for r in read(folder / FILE, _say) if type(r.get("step")) is int and 0 <= r["step"] <= MOST]
        if not self.records:
            raise ConfigError(f"{folder / FILE}: has no records")
        path = folder / "config.json"
        self.raw = read_json(path, str(path), old=True) if path.exists() else None
        try:
            self.config = from_dict(Config, self.raw)
        except ConfigError:
            self.config = None  # another version's: its text is shown, nothing is derived from it
        planned = {p.name: p.steps for p in self.config.phases} if self.config else {}
        seen = list(dict.fromkeys(str(r.get("phase", "run")) for r in self.records))
        self.phases = [name for name in planned if name in seen] + [name for name in seen if name not in planned]
        self.offsets: dict[str, int] = {}
        start = 0
        for name in self.phases:
            self.offsets[name] = start
            start += max([planned.get(name, 0), *(r["step"] for r in self.of(name))])

    def of(self, phase: str, kind: str | None = None) -> list[Record]:
        return [
            r for r in self.records if str(r.get("phase", "run")) == phase and kind in (None, r.get("kind", "train"))
        ]

    def series(self, phase: str, key: str, kind: str = "train") -> tuple[list[int], list[float]]:
        """Steps, counted across phases, and values of one quantity; unknown ones are left out."""
        found = [(self.offsets[phase] + r["step"], r[key]) for r in self.of(phase, kind) if is_number(r.get(key))]
        return [step for step, _ in found], [value for _, value in found]

    def routed(self, phase: str) -> list[Record]:
        """The records of a phase that have routers, in order of steps."""
        return [r for r in self.of(phase) if isinstance(r.get("routers"), dict) and r["routers"]]

    def model_of(self, phase: str) -> ModelConfig | None:
        """What a phase trains; None where the configuration does not say."""
        for row in self.config.phases if self.config else ():
            if row.name == phase:
                return self.config.model if row.model == "model" else self.config.model.vanilla()
        return None

    def parameters(self, phase: str) -> int | None:
        model = self.model_of(phase)
        return None if model is None else parameter_count(model).total


@contextlib.contextmanager
def understood(folder: Path) -> Iterator[None]:
    """Raises `ConfigError` where records have names as training writes them with values of another kind: what is in a
    stranger's log is found out when it is used."""
    try:
        yield
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        why = (str(error).splitlines() or [""])[0]
        raise ConfigError(
            f"{folder / FILE}: has records that training does not write ({type(error).__name__}: {why})"
        ) from error


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def smooth(values: Sequence[float]) -> list[float]:
    """The centred mean over a fiftieth of the series; at its ends over the half of that which there is."""
    half, sums = len(values) // 100, [0.0, *itertools.accumulate(values)]
    spans = ((max(0, i - half), min(len(values), i + half + 1)) for i in range(len(values)))
    return [(sums[end] - sums[start]) / (end - start) for start, end in spans]


def router_value(record: Record, side: str, key: str) -> Any:
    """One quantity of one side's routers, None where it is missing."""
    return (record["routers"].get(side) or {}).get(key)


def latest_usage(routed: Sequence[Record]) -> Record | None:
    """Of records that have routers, the last that says which modules are used; the held-out documents' figures are
    steadier than one training batch's."""
    known = [r for r in routed if any(router_value(r, side, "usage") for side in SIDES)]
    return next(reversed([r for r in known if r.get("kind") == "validation"] or known), None)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
