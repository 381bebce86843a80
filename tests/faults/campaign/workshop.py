"""A run that nothing disturbs, copies of it that faults are done to, and the comparison of their ends with it."""

import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import random
import re
import shutil
import traceback
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import orbax.checkpoint as ocp
import tiny

from campaign.outcomes import Outcome, Said
from train import cli, main
from train.checkpoints import locate, steps
from train.config import CheckpointConfig, Config
from train.reporting import pictures
from train.training import ending, initial_state, loop

PHASES = ("pretrain", "mom")
STEPS = 6  # of each
DONE = 2 * STEPS - 1  # steps of the run that is copied, of which the last is in its log only


def config(folder: Path, source: str | None = None) -> Config:
    """The tiny experiment of the tests with a smaller model; all of its checkpoints stay."""
    base = tiny.config(folder, source=source, checkpoint=CheckpointConfig(every=2, keep=9))
    model = dataclasses.replace(base.model, num_ffn_modules=2, num_steps=1, top_k=1, num_top=0)
    return dataclasses.replace(base, model=model)


def write_experiment(folder: Path, name: str = "experiment.py", phases: Sequence[str] = PHASES) -> Path:
    """A file for --config, and its corpus."""
    source = tiny.write_corpus(folder / "corpus")
    file = folder / name
    file.write_text(
        "import dataclasses\nfrom pathlib import Path\n\nfrom campaign.workshop import config\n\n\n"
        f"def get_config():\n    whole = config(Path({str(folder)!r}), {source!r})\n"
        f"    return dataclasses.replace(whole, phases=whole.phases[: {len(phases)}])\n"
    )
    return file


def make_short(patch: Callable[[object, str, object], object]) -> None:
    """Reports without pictures and no samples at the end, which take longer than all steps."""
    patch(pictures, "embedded", lambda width, height, draw, caption: f"<p>{caption}</p>")
    patch(ending, "_sample", lambda *args: ("", ""))


@contextlib.contextmanager
def shared_programs() -> Iterator[None]:
    """Runs in this process share their compiled steps, and what is traced to find shapes."""
    with contextlib.ExitStack() as stack:

        def patch(owner: object, name: str, value: object) -> None:
            stack.enter_context(mock.patch.object(owner, name, value))

        for owner, name in (
            (loop, "make_optimizer"),
            (loop, "jit_train_step"),
            (initial_state, "abstract_params"),
        ):
            patch(owner, name, functools.cache(getattr(owner, name)))
        cli.prepare_process()
        patch(cli, "prepare_process", lambda: None)
        make_short(patch)
        yield


def call(program: Callable[[Sequence[str]], int], *arguments: object) -> Said:
    """A program called in this process."""
    out, err = io.StringIO(), io.StringIO()
    code: object = None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.run_program(lambda: program([str(argument) for argument in arguments]))
        except SystemExit as ended:
            code = ended.code
        except Exception as error:  # what would be a traceback
            traceback.print_exc()
            code = 1
            err.write(f"{type(error).__name__}: {error}\n")
    return Said(int(code or 0), out.getvalue(), err.getvalue())


# -- how a run ended ---------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class End:
    """arrays: of the last checkpoint of each phase, by phase and item, a checksum. log: without times. data: the
    examples seen after each step."""

    arrays: dict[str, str]
    log: list[dict]
    data: dict[tuple[str, int], list[int]]


def end_of(run: Path, phases: Sequence[str] = PHASES) -> End:
    arrays = {}
    for phase in phases:
        folder = run / locate.FOLDER / phase
        step = locate.last_step(folder)
        if step is not None and steps.problem(folder, step) is None:
            for item in ("params", "optimizer"):
                arrays[f"{phase} {step} {item}"] = _checksum(folder / str(step) / item)
    log = records(run)
    data: dict[tuple[str, int], list[int]] = {}
    for record in log:
        if record["kind"] == "train":
            data.setdefault((record["phase"], record["step"]), []).append(record["examples_seen"])
    return End(arrays, tiny.without_times(log), data)


def _checksum(folder: Path) -> str:
    reader = ocp.PyTreeCheckpointer()
    tree = reader.metadata(folder).item_metadata.tree
    as_arrays = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    leaves = jax.tree_util.tree_leaves_with_path(reader.restore(folder, restore_args=as_arrays))
    digest = hashlib.sha256()
    for path, leaf in sorted(leaves, key=lambda item: jax.tree_util.keystr(item[0])):
        array = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode() + array.tobytes())
    return digest.hexdigest()


def records(run: Path) -> list[dict]:
    """The log's lines, as far as they are whole."""
    file = run / "metrics.jsonl"
    found = []
    if file.is_file():
        for line in file.read_bytes().splitlines():
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
    return [record for record in found if isinstance(record, dict) and {"kind", "phase", "step"} <= record.keys()]


def steps_done(run: Path) -> int:
    done = [PHASES.index(r["phase"]) * STEPS + r["step"] for r in records(run) if r["kind"] == "train"]
    return max(done, default=0)


def resumed_at(said: Said, done: int) -> int:
    """After how many steps of all phases a program went on."""
    found = re.search(r"^(\w+): resuming at step (\d+)", said.err, re.M)
    if found:
        return PHASES.index(found[1]) * STEPS + int(found[2])
    if "mom: finished before" in said.err:
        return done
    return STEPS if "pretrain: finished before" in said.err else 0


# -- where faults are done ---------------------------------------------------------------------------------------------


class Workshop:
    """Folder with a finished run, its cache and its models in other formats; made once, used by all jobs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.experiment = write_experiment(folder)
        self.one_phase = write_experiment(folder, "one_phase.py", PHASES[:1])
        self.reference, self.cache = folder / "reference", folder / "cache"

    def prepare(self) -> None:
        if not (self.reference / "report.html").exists():
            said = call(main.main, "--config", self.experiment, "--run", self.reference)
            assert said.code == 0, said.err

    @functools.cached_property
    def end(self) -> End:
        return end_of(self.reference)

    def place(self, name: str) -> "Place":
        # A number: words of the name would be found in what programs say of their files.
        folder = self.folder / "places" / f"{zlib.crc32(name.encode()):08x}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return Place(self, folder, random.Random(name))


class Place:
    """A folder for the faults of one job. run: the run's folder; cache: of its tokens, at first the workshop's."""

    def __init__(self, shop: Workshop, folder: Path, rng: random.Random) -> None:
        self.shop, self.folder, self.rng = shop, folder, rng
        self.run, self.cache = folder / "run", shop.cache

    @property
    def seed(self) -> int:
        return self.rng.randrange(2**31)

    def half(self) -> Path:
        """A copy of the run as it was when it was killed after step 5 of its second phase, whose checkpoints are of
        steps 2, 3 and 4."""
        shutil.copytree(self.shop.reference, self.run)
        shutil.rmtree(self.run / "checkpoints" / "mom" / str(STEPS))
        (self.run / "report.html").unlink()
        lines = (self.run / "metrics.jsonl").read_text().splitlines(keepends=True)
        last = next(i for i, line in enumerate(lines) if '"mom"' in line and f'"step": {STEPS}' in line)
        (self.run / "metrics.jsonl").write_text("".join(lines[:last]))
        return self.run

    def own_cache(self) -> Path:
        self.cache = self.folder / "cache"
        shutil.copytree(self.shop.cache, self.cache)
        return self.cache

    def flags(self) -> tuple[object, ...]:
        return "--config", self.shop.experiment, "--run", self.run, "--data.cache", self.cache

    def train(self, *flags: object) -> Said:
        return call(main.main, *self.flags(), *flags)

    def compare(
        self,
        outcome: Outcome,
        *,
        log: bool = True,
        told: bool = False,
        reference: End | None = None,
        phases: Sequence[str] = PHASES,
    ) -> None:
        """Compares the run's end with the reference's. told: whether something was said, which makes a difference no
        silent one. log: whether its log has to be the same too. phases: whose last checkpoints count."""
        here, there = end_of(self.run, phases), reference or self.shop.end
        arrays = {name: value for name, value in there.arrays.items() if name.split()[0] in phases}
        same = here.arrays == arrays and (not log or here.log == there.log)
        outcome.expect(here.arrays == arrays, f"other arrays: {sorted(here.arrays)} {sorted(arrays)}")
        if log:
            outcome.expect(here.log == there.log, f"another log: {_first_difference(here.log, there.log)}")
            rows = here.data.keys() | there.data.keys()
            outcome.data += sum(here.data.get(row) != there.data.get(row) for row in rows)
        outcome.silent |= not same and not told


def _first_difference(ours: list[dict], theirs: list[dict]) -> str:
    for a, b in zip(ours, theirs, strict=False):
        if a != b:
            return str([(k, a.get(k), b.get(k)) for k in a.keys() | b.keys() if a.get(k) != b.get(k)])[:300]
    return f"{len(ours)} lines, not {len(theirs)}"
