"""What became of a fault, and the kinds of faults that there are."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass
class Outcome:
    """What one fault led to.

    kind: the row of the table. what: what was done. happened: how the programs took it. steps_lost: done before it, and
    done again. data: examples that were lost or trained on twice. silent: whether results differ without a word.
    wrong: whatever was not as it should be, in words; empty where all was.
    """

    kind: str
    what: str
    happened: str = ""
    steps_lost: int = 0
    data: int = 0
    silent: bool = False
    wrong: list[str] = dataclasses.field(default_factory=list)

    def expect(self, good: bool, otherwise: str) -> bool:
        if not good:
            self.wrong.append(otherwise)
        return good


@dataclasses.dataclass(frozen=True)
class Job:
    """One or several faults of a kind, done one after the other to one run. group: the section of the table."""

    group: str
    name: str
    do: Callable[[Any], list[Outcome]]  # of a Place


@dataclasses.dataclass(frozen=True)
class Said:
    """How a program ended: the exit code, or minus the number of the signal."""

    code: int
    out: str
    err: str

    def complaints(self) -> list[str]:
        """What is wrong with the way it ended."""
        said = [line for line in self.err.splitlines() if line.startswith("error: ")]
        found = []
        if "Traceback" in self.err or "Traceback" in self.out:
            found.append(f"a traceback: {self.err[-300:]!r}")
        if self.code == 1:
            found.append(f"exit code 1: {self.err[-300:]!r}")
        if self.code in (2, 3, 75) and (len(said) != 1 or not self.err.rstrip().endswith(said[0])):
            found.append(f"not one line of error: {self.err[-300:]!r}")
        return found

    def says(self, pattern: str) -> bool:
        return re.search(pattern, self.err) is not None
