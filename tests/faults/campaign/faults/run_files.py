"""Faults of a run's files, and of its cache's: every fault that a file may meet, done to every kind of file."""

import dataclasses
import json
import shutil
from collections.abc import Callable, Collection
from pathlib import Path

import inject

from campaign.judging import goes_on, refuses
from campaign.outcomes import Job, Outcome
from campaign.workshop import Place, call
from train import evaluate, prepare

GROUP = "Files of a run that goes on"
BYTES = ("a bit flipped", "overwritten")  # the size stays
NEWEST = "checkpoints/mom/4"


@dataclasses.dataclass(frozen=True)
class Target:
    """A kind of file. find: in a place. exits: with what training may end, by default 0 for a file that is missing or
    short, and 2 for other bytes. says: what it has to say. repair: the folder to put back, or to delete (`-`)."""

    name: str
    find: Callable[[Place], Path]
    exits: Collection[int] | None = None
    says: str | None = None
    log: bool = True
    repair: str | None = None
    times: int = 1


def _in_run(name: str) -> Callable[[Place], Path]:
    return lambda place: place.run / name


def _in_cache(name: str) -> Callable[[Place], Path]:
    return lambda place: next(place.cache.glob(name))


def _largest(part: str) -> Callable[[Place], Path]:
    return lambda place: inject.largest(place.run / NEWEST, part)


CHECKPOINT = "set aside as 4.damaged|checksum"
TARGETS = (
    Target("parameters of the newest checkpoint", _largest("params"), None, CHECKPOINT, times=2),
    Target("optimizer of the newest checkpoint", _largest("optimizer"), None, CHECKPOINT, times=2),
    Target("orbax's metadata of it", _in_run(f"{NEWEST}/params/_METADATA"), None, CHECKPOINT),
    Target("orbax's table of arrays", _in_run(f"{NEWEST}/params/manifest.ocdbt"), None, CHECKPOINT),
    Target("its own description (meta)", _in_run(f"{NEWEST}/meta/metadata"), None, CHECKPOINT),
    Target("its checksums (manifest)", _in_run(f"{NEWEST}/manifest.json"), (0, 2), "damaged|checksum", times=2),
    Target("config.json", _in_run("config.json"), (0, 2), "config|another configuration", repair="config.json"),
    Target(
        "metrics.jsonl",
        _in_run("metrics.jsonl"),
        (0, 2),
        "metrics.jsonl(, line| has)",
        log=False,
        repair="metrics.jsonl",
        times=2,
    ),
    Target("tokenizer.model", _in_run("tokenizer.model"), (0, 2), "tokenizer", repair="tokenizer.model"),
    Target("the cache's tokens", _in_cache("data-*/train.bin"), (2,), "data.cache|checksum", repair="-", times=2),
    Target("the cache's held-out tokens", _in_cache("data-*/val.bin"), (2,), "data.cache|checksum", repair="-"),
    Target("the cache's ends of documents", _in_cache("data-*/train.ends"), (2,), "data.cache|checksum", repair="-"),
    Target("the cache's meta.json", _in_cache("data-*/meta.json"), (0, 2), "data.cache|is not whole", repair="-"),
    Target("the cache's tokenizer", _in_cache("tokenizer-*/tokenizer.model"), (0, 2), "tokenizer", repair="-"),
)


def _training(target: Target, fault: str) -> Callable[[Place], list[Outcome]]:
    def do(place: Place) -> list[Outcome]:
        place.half()
        place.own_cache()
        file = target.find(place)
        kept, original = place.folder / "kept", file.read_bytes()
        kept.write_bytes(original)
        said = inject.FILE_FAULTS[fault](file, seed=place.seed)
        outcome = Outcome(f"{target.name}: {fault}", said)
        exits = target.exits or ((2,) if fault in BYTES else (0,))

        def repair() -> None:
            if target.repair == "-":
                shutil.rmtree(file.parent)
            else:
                shutil.copy(kept, file)

        says = target.says
        done = goes_on(place, outcome, exits=exits, says=says, repair=repair if target.repair else None, log=target.log)
        if target.name == "metrics.jsonl" and "went on" in outcome.happened and "said" not in outcome.happened:
            here, there = (folder / "metrics.jsonl" for folder in (place.run, place.shop.reference))
            place.compare(outcome, log=here.exists() and there.exists())
        return [done]

    return do


def _earlier_phase(fault: str) -> Callable[[Place], list[Outcome]]:
    """Training needs it no more; whoever reads it is told."""

    def do(place: Place) -> list[Outcome]:
        place.half()
        file = inject.largest(place.run / "checkpoints/pretrain/6", "params")
        what = inject.FILE_FAULTS[fault](file, seed=place.seed)
        outcome = Outcome(f"the checkpoint of the phase before: {fault}", what)
        read = call(evaluate.main, "--checkpoint", place.run / "checkpoints" / "pretrain", "--limit", 1)
        refuses(outcome, read, "damaged")
        goes_on(place, outcome, phases=("mom",))
        outcome.happened = "training went on; programs that read it stopped, exit code 2"
        return [outcome]

    return do


def _all_of_phase(place: Place) -> list[Outcome]:
    """No checkpoint of the second phase is whole: on from the end of the first."""
    place.half()
    for step, fault in zip((2, 3, 4), ("truncated", "removed", "emptied"), strict=True):
        inject.FILE_FAULTS[fault](inject.largest(place.run / f"checkpoints/mom/{step}", "params"), seed=place.seed)
    outcome = Outcome("all checkpoints of a phase: truncated, removed, emptied", "2 truncated, 3 removed, 4 emptied")
    return [goes_on(place, outcome, says="set aside as 2.damaged")]


def _all_there_are(place: Place) -> list[Outcome]:
    """Nothing whole is left: nothing begins anew unasked."""
    place.half()
    kept = place.folder / "kept"
    shutil.copytree(place.run / "checkpoints", kept)
    for step in sorted((place.run / "checkpoints").glob("*/[0-9]*")):
        inject.truncate(inject.largest(step, "params"), seed=place.seed)

    def repair() -> None:
        shutil.rmtree(place.run / "checkpoints")
        shutil.copytree(kept, place.run / "checkpoints")

    outcome = Outcome("all checkpoints of a run: truncated", "the parameters in each of them")
    return [goes_on(place, outcome, exits=(2,), says="no checkpoint of this run is whole", repair=repair)]


def _no_checksums(place: Place) -> list[Outcome]:
    place.half()
    for file in (place.run / "checkpoints").rglob("manifest.json"):
        file.unlink()
    return [goes_on(place, Outcome("checkpoints of a version without checksums", "all manifests removed"))]


def _journal(fault: str) -> Callable[[Place], list[Outcome]]:
    """A preparation that was interrupted goes on, whatever its journal says."""

    def do(place: Place) -> list[Outcome]:
        cache = place.own_cache()
        [good] = cache.glob("data-*")
        partial = good.with_name(f".{good.name}.partial")
        good.rename(partial)
        written = dict.fromkeys(("tokens", "documents", "crc32", "ends_crc32"), 0)
        journal = {"part": 0, "name": "000.txt", "pieces": 0, "train": written, "validation": written}
        (partial / "journal.json").write_text(json.dumps(journal))
        what = inject.FILE_FAULTS[fault](partial / "journal.json", seed=place.seed)
        outcome = Outcome(f"the journal of an interrupted preparation: {fault}", what)
        said = call(prepare.main, "--config", place.shop.experiment, "--cache", place.cache)
        outcome.wrong += said.complaints()
        outcome.expect(said.code == 0, f"exit code {said.code}: {said.err[-300:]!r}")
        for name in ("train.bin", "val.bin", "train.ends"):
            same = (good / name).read_bytes() == (place.shop.cache / good.name / name).read_bytes()
            outcome.silent |= not outcome.expect(same, f"another {name}")
        outcome.happened = "went on, or began anew: the same tokens"
        return [outcome]

    return do


def jobs() -> list[Job]:
    found = [
        Job(GROUP, f"{target.name}: {fault} {number}", _training(target, fault))
        for target in TARGETS
        for fault in inject.FILE_FAULTS
        for number in range(target.times)
    ]
    found += [Job(GROUP, f"earlier phase: {fault}", _earlier_phase(fault)) for fault in inject.FILE_FAULTS]
    found += [
        Job(GROUP, "all checkpoints of a phase", _all_of_phase),
        Job(GROUP, "all checkpoints of a run", _all_there_are),
        Job(GROUP, "no checksums", _no_checksums),
    ]
    return found + [Job("Files of a cache", f"journal: {fault}", _journal(fault)) for fault in inject.FILE_FAULTS]
