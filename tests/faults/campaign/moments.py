"""Random moments of a run, found by looking at its folder."""

import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from programs import ROOT, environment

from campaign.nursery import Child, Nursery
from campaign.workshop import PHASES, STEPS, Place, records

# In the order in which a run comes to them.
MOMENTS = (
    *("importing", "training a tokenizer", "tokenizing", "compiling", "in a step", "saving", "before the checksums"),
    *("between the phases", "in a step of phase 2", "saving in phase 2", "at the end"),
)
# Seconds after a moment has begun, at most.
AFTER = {
    **dict.fromkeys(MOMENTS, 0.05),
    "importing": 3.0,
    "training a tokenizer": 0.2,
    "compiling": 2.0,
    "before the checksums": 0.0,
    "between the phases": 1.5,
    "at the end": 0.3,
}


class Started:
    """`train.main`, just started; of the moment `importing` as a user starts it, else from the nursery."""

    def __init__(self, place: Place, nursery: Nursery, moment: str) -> None:
        self.place = place
        flags = [*place.flags(), "--checkpoint.keep", "1"]
        self.child: Child | subprocess.Popen
        self.files = [place.folder / name for name in ("said.out", "said.err")]
        if moment == "importing":
            command = [sys.executable, "-m", "train.main", *map(str, flags)]
            with self.files[0].open("w") as out, self.files[1].open("w") as err:
                # Not as in a shell's background, where a program would not hear an interrupt.
                self.child = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=out, stderr=err)
        else:
            self.child = nursery.start("train.main", flags, place.folder)
        self.had = unfinished(place.run)

    @property
    def err(self) -> str:
        return self.files[1].read_text(errors="replace")

    def reach(self, moment: str, rng: random.Random) -> bool:
        return reach(moment, self.place, self.had, rng, [self.child])


def reach(
    moment: str, place: Place, had: set[Path], rng: random.Random, children: Sequence[Child | subprocess.Popen]
) -> bool:
    """Waits for the moment, and a little longer; whether it came before the end of one of the programs."""
    came = begun(moment, place, had, rng.randint(1, STEPS - 1))
    while not came():
        if any(child.poll() is not None for child in children):
            return False
        time.sleep(0.004)
    time.sleep(rng.uniform(0, AFTER[moment]))
    return all(child.poll() is None for child in children)


def unfinished(run: Path) -> set[Path]:
    """Checkpoints that are being written, or were when their process was killed; and those without checksums."""
    return {*_temporary(run), *_unsealed(run)}


def _temporary(run: Path) -> set[Path]:
    return set(run.glob("checkpoints/*/*tmp*"))


def _unsealed(run: Path) -> set[Path]:
    steps = [path for path in run.glob("checkpoints/*/*") if path.name.isdecimal()]
    return {path for path in steps if not (path / "manifest.json").exists()}


def begun(moment: str, place: Place, had: set[Path], step: int) -> Callable[[], bool]:
    """Whether it has begun, for one of the later steps of a phase from `step` on."""
    run = place.run
    phase = PHASES[moment.endswith("phase 2")]

    def logged(kind: str, name: str, after: int) -> bool:
        return any(r["kind"] == kind and r["phase"] == name and r["step"] >= after for r in records(run))

    return {
        "importing": lambda: True,
        "training a tokenizer": lambda: any(place.cache.glob(".tokenizer-*")),
        "tokenizing": lambda: any(place.cache.glob(".data-*")),
        "compiling": lambda: (run / "config.json").exists(),
        "in a step": lambda: logged("train", phase, step),
        "in a step of phase 2": lambda: logged("train", phase, step),
        "saving": lambda: bool(_temporary(run) - had),
        "saving in phase 2": lambda: any("mom" in path.parts for path in _temporary(run) - had),
        "before the checksums": lambda: bool(_unsealed(run) - had),
        "between the phases": lambda: logged("final", "pretrain", 0),
        "at the end": lambda: logged("final", "mom", 0),
    }[moment]
