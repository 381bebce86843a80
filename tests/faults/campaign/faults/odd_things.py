"""Things in a run's folder that do not belong there, or are of another kind than they should be."""

import os
import shutil
from collections.abc import Callable

from campaign.judging import goes_on, refuses
from campaign.outcomes import Job, Outcome
from campaign.workshop import Place, call
from train import evaluate, prepare
from train.verify import __main__ as verify_program

GROUP = "Things that do not belong there"

Change = Callable[[Place], object]


def _changed(
    what: str, change: Change, exits: tuple[int, ...] = (0,), says: str | None = None, log: bool = True
) -> Job:
    """The folder is put in order again where training does not go on by itself."""

    def do(place: Place) -> list[Outcome]:
        place.half()
        kept = place.folder / "kept"
        shutil.copytree(place.run, kept)
        change(place)

        def repair() -> None:
            shutil.rmtree(place.run)
            shutil.copytree(kept, place.run)

        return [goes_on(place, Outcome(what, what), exits=exits, says=says, repair=repair, log=log)]

    return Job(GROUP, what, do)


def _instead(name: str, kind: str) -> Change:
    """A folder, a file, a link or a pipe in the place of what is there."""

    def change(place: Place) -> None:
        path = place.run / name
        moved = place.folder / "moved"
        if path.is_dir():
            shutil.move(path, moved)
        elif path.exists():
            path.rename(moved)
        if kind == "folder":
            path.mkdir()
        elif kind == "file":
            path.write_bytes(b"a file\n")
        elif kind == "link":
            moved.touch()
            path.symlink_to(moved)
        elif kind == "broken link":
            path.symlink_to(place.folder / "nothing")
        else:
            os.mkfifo(path)

    return change


def _stray(name: str, content: bytes | None) -> Change:
    def change(place: Place) -> None:
        path = place.run / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir() if content is None else path.write_bytes(content)

    return change


def _lock(place: Place) -> list[Outcome]:
    """What a link called .lock leads to stays as it is."""
    place.half()
    victim = place.folder / "victim"
    victim.write_text("precious\n")
    (place.run / ".lock").unlink(missing_ok=True)
    (place.run / ".lock").symlink_to(victim)
    outcome = Outcome("a link instead of the lock", ".lock leads to another file")
    goes_on(place, outcome, exits=(2,), says="no link", repair=(place.run / ".lock").unlink)
    outcome.silent |= not outcome.expect(victim.read_text() == "precious\n", "the file behind it was changed")
    return [outcome]


def _cache_file(place: Place) -> list[Outcome]:
    """The folder of the caches is a file."""
    place.cache = place.folder / "file"
    place.cache.write_text("a file\n")
    said = call(prepare.main, "--config", place.shop.experiment, "--cache", place.cache)
    return [refuses(Outcome("a file instead of the folder of caches", "prepare"), said, "must be a folder")]


def _reading(place: Place) -> list[Outcome]:
    """Programs that read meet an empty folder where the newest checkpoint should be."""
    place.half()
    shutil.rmtree(place.run / "checkpoints/mom/4")
    (place.run / "checkpoints/mom/4").mkdir()
    found = []
    for name, program, arguments in (
        ("evaluate", evaluate.main, ("--checkpoint", place.run, "--limit", 1)),
        ("verify", verify_program.main, (place.run,)),
    ):
        outcome = Outcome("an empty folder for a checkpoint, read by programs", name)
        said = call(program, *arguments)
        if name == "verify":
            outcome.expect(said.code == 2 and "damaged" in said.out, f"{said}")
            outcome.happened = f"stopped, exit code {said.code}"
        else:
            refuses(outcome, said, "damaged")
        found.append(outcome)
    return found


def jobs() -> list[Job]:
    stray = _changed
    return [
        stray("an empty folder with a step's number", _stray("checkpoints/mom/25", None), says="25.damaged"),
        stray("a file with a step's number", _stray("checkpoints/mom/25", b"x"), (0, 2), "25"),
        stray("half of orbax's save", _stray("checkpoints/mom/5.orbax-checkpoint-tmp/params", None)),
        stray("half of a deletion of ours", _stray("checkpoints/mom/.3.removed/params", None)),
        stray("a folder of another phase", _stray("checkpoints/other/3", None)),
        stray("other files", _stray("notes.txt", b"mine")),
        stray("half of a file that is written aside", _stray(".metrics.jsonl.1.partial", b"{")),
        stray("a log whose last line is half there", _tail(b'{"kind": "train", "phase": "mom", "st')),
        stray("a log that ends in zeros", _tail(bytes(4096))),
        stray("a folder instead of config.json", _instead("config.json", "folder"), (2,), "config.json"),
        stray("a pipe instead of config.json", _instead("config.json", "pipe"), (2,), "config.json"),
        stray("a folder instead of metrics.jsonl", _instead("metrics.jsonl", "folder"), (2,), "metrics.jsonl"),
        stray("a link instead of metrics.jsonl", _instead("metrics.jsonl", "link"), (0, 2), "metrics.jsonl"),
        stray("a pipe instead of metrics.jsonl", _instead("metrics.jsonl", "pipe"), (2,), "metrics.jsonl"),
        stray(
            "a broken link instead of metrics.jsonl", _instead("metrics.jsonl", "broken link"), (0, 2), "metrics.jsonl"
        ),
        stray("a folder instead of tokenizer.model", _instead("tokenizer.model", "folder"), (2,), "tokenizer.model"),
        stray("a file instead of checkpoints", _instead("checkpoints", "file"), (2,), "checkpoints"),
        stray("a file instead of a phase's checkpoints", _instead("checkpoints/mom", "file"), (2,), "checkpoints/mom"),
        stray("a file instead of tensorboard", _instead("tensorboard", "file")),
        stray("a folder instead of the lock", _instead(".lock", "folder"), (2,), "lock"),
        stray("a folder instead of report.html", _instead("report.html", "folder"), (2,), "report.html"),
        stray("a file instead of routes", _instead("routes", "file"), (2,), "routes"),
        Job(GROUP, "link as lock", _lock),
        Job(GROUP, "file as cache", _cache_file),
        Job(GROUP, "empty checkpoint read", _reading),
    ]


def _tail(content: bytes) -> Change:
    def change(place: Place) -> None:
        with (place.run / "metrics.jsonl").open("ab") as file:
            file.write(content)

    return change
