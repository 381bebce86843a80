"""Faults of what programs read: checkpoints, models in other formats, weights that are no numbers, logs."""

import shutil
from collections.abc import Callable
from pathlib import Path

import inject
import jax
import numpy as np
from orbax.checkpoint.args import StandardSave
from safetensors.numpy import load_file, save_file

from campaign.judging import refuses
from campaign.outcomes import Job, Outcome, Said
from campaign.workshop import Place, call
from train import analyse, convert, evaluate, generate, main, report
from train.checkpoints import formats, single_file
from train.checkpoints.locate import find
from train.checkpoints.manager import Checkpoints
from train.data import tokenizers
from train.verify import __main__ as verify

GROUP = "What programs read"


def _readers(place: Place, checkpoint: Path) -> list[tuple[str, Callable[[], Said]]]:
    return [
        ("generate", lambda: call(generate.main, "--checkpoint", checkpoint, "--prompt", "alpha", "--tokens", 2)),
        ("evaluate", lambda: call(evaluate.main, "--checkpoint", checkpoint, "--limit", 1)),
        ("analyse", lambda: call(analyse.main, "--checkpoint", checkpoint, "--tokens", 64)),
        (
            "convert",
            lambda: call(
                convert.main, "--input", checkpoint, "--output", place.folder / "new.safetensors", "--to", "safetensors"
            ),
        ),
        (
            "train, init_from",
            lambda: call(
                main.main,
                *("--config", place.shop.experiment, "--run", place.folder / "other"),
                *("--phases.0.init-from", checkpoint),
            ),
        ),
    ]


def _checkpoint(fault: str) -> Callable[[Place], list[Outcome]]:
    """Programs that read a damaged checkpoint name it, and the whole one before it; they write nothing."""

    def do(place: Place) -> list[Outcome]:
        place.half()
        part = place.rng.choice(("params", "optimizer", "meta"))
        what = inject.FILE_FAULTS[fault](inject.largest(place.run / "checkpoints/mom/4", part), seed=place.seed)
        found = []
        for name, read in _readers(place, place.run / "checkpoints" / "mom"):
            outcome = refuses(Outcome(f"the checkpoint that a program reads: {fault}", f"{name}: {what}"), read())
            _nothing_new(place, outcome)
            found.append(outcome)
        said = call(verify.main, place.run)
        outcome = Outcome(f"the checkpoint that a program reads: {fault}", f"verify: {what}", "stopped, exit code 2")
        outcome.silent = not outcome.expect(said.code == 2 and "damaged  checkpoints/mom/4" in said.out, f"{said}")
        return [*found, outcome]

    return do


def _nothing_new(place: Place, outcome: Outcome) -> None:
    for name in ("new.safetensors", "other"):
        outcome.expect(not (place.folder / name).exists(), f"{name} was written")


def _exported(place: Place) -> tuple[Path, Path]:
    """(a folder of Hugging Face's kind, a single file), of the first phase."""
    folder = place.shop.folder / "exported"
    if not folder.exists():
        found = find(place.shop.reference / "checkpoints" / "pretrain", field="run")
        meta = found.meta()
        params = found.arrays(meta.model)
        tokenizer = tokenizers.load(place.shop.reference / "tokenizer.model", field="tokenizer")
        partial = folder.with_name("exported.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        formats.write_folder(partial / "gpt2", "huggingface", meta.model, params, tokenizer)
        single_file.save(partial / "single.safetensors", meta.model, params, tokenizer.fingerprint)
        tokenizer.save(partial)
        partial.rename(folder)
    shutil.copytree(folder, place.folder / "exported")
    return place.folder / "exported" / "gpt2", place.folder / "exported" / "single.safetensors"


def _export(name: str, fault: str) -> Callable[[Place], list[Outcome]]:
    """A model outside of a run: read as it was, or refused."""

    def do(place: Place) -> list[Outcome]:
        folder, single = _exported(place)
        model, file = {
            "the weights of an exported folder": (folder, folder / "model.safetensors"),
            "config.json of an exported folder": (folder, folder / "config.json"),
            "the tokenizer of an exported folder": (folder, folder / "tokenizer.model"),
            "a single file with a model": (single, single),
        }[name]
        read = _readers(place, model)[0][1]
        before = read()
        what = inject.FILE_FAULTS[fault](file, seed=place.seed)
        outcome, said = Outcome(f"{name}: {fault}", what), read()
        outcome.wrong += said.complaints()
        outcome.expect(before.code == 0, before.err[-300:])
        outcome.expect(said.code in (0, 2), f"exit code {said.code}: {said.err[-300:]!r}")
        if said.code == 0:
            harmless = _same_model(model, place.shop.folder / "exported" / model.name)
            outcome.silent = not outcome.expect(harmless, "other numbers, and not a word")
        outcome.happened = f"stopped, exit code {said.code}" if said.code else "read: nothing of the model was hit"
        return [outcome]

    return do


def _same_model(one: Path, other: Path) -> bool:
    kind = formats.detect(one, "checkpoint")
    assert kind is not None
    a, b = (formats.read(path, kind, "checkpoint") for path in (one, other))
    arrays = (dict(formats.single_file.flatten(model.params)) for model in (a, b))
    ours, theirs = arrays
    same = a.config == b.config and ours.keys() == theirs.keys()
    same = same and all(np.array_equal(ours[name], theirs[name]) for name in ours)
    return same and (a.tokenizer is None) == (b.tokenizer is None) and _fingerprint(a) == _fingerprint(b)


def _fingerprint(model: formats.Model) -> str:
    return "" if model.tokenizer is None else model.tokenizer.fingerprint


def _no_number(value: float) -> Callable[[Place], list[Outcome]]:
    """One weight is no number: every program that reads it says which array it is in."""

    def do(place: Place) -> list[Outcome]:
        folder, _ = _exported(place)
        file = folder / "model.safetensors"
        weights = load_file(file)
        key = place.rng.choice(sorted(key for key in weights if key.endswith("weight")))
        weights[key] = weights[key].copy()
        weights[key].flat[place.rng.randrange(weights[key].size)] = value
        save_file(weights, file, metadata={"format": "pt"})
        found = []
        for name, read in _readers(place, folder):
            if name not in ("train, init_from", "evaluate"):  # they want other formats, or texts
                outcome = refuses(Outcome(f"a weight of a stranger's file is {value}", f"{name}: {key}"), read())
                _nothing_new(place, outcome)
                found.append(outcome)
        return found

    return do


def _no_number_in_run(place: Place) -> list[Outcome]:
    """A checkpoint with NaN whose checksums are right, as an older version may have saved it."""
    place.half()
    folder = place.run / "checkpoints" / "mom"
    found = find(folder, field="run")
    meta = found.meta()
    params = found.arrays(meta.model)
    leaf = max(jax.tree.leaves(params), key=lambda array: array.size)
    leaf.flat[place.rng.randrange(leaf.size)] = np.nan
    shutil.rmtree(folder / "4")
    checkpoints = Checkpoints(folder, keep=9)
    checkpoints.save_items(meta, params=StandardSave(params))
    checkpoints.wait()
    checkpoints.close()
    found_outcomes = []
    for name, read in _readers(place, folder):
        if name == "train, init_from":  # the first phase takes no model of the second
            continue
        outcome = refuses(Outcome("a weight of a checkpoint is nan", name), read(), "NaN|nan|finite|no number")
        _nothing_new(place, outcome)
        found_outcomes.append(outcome)
    return found_outcomes


def _log(fault: str) -> Callable[[Place], list[Outcome]]:
    """The report of a damaged log: an error that names it, or a report of what is there."""

    def do(place: Place) -> list[Outcome]:
        place.half()
        what = inject.FILE_FAULTS[fault](place.run / "metrics.jsonl", seed=place.seed)
        said = call(report.main, place.run)
        outcome = Outcome(f"the log of which a report is made: {fault}", what)
        outcome.wrong += said.complaints()
        outcome.expect(said.code in (0, 2), f"exit code {said.code}: {said.err[-300:]!r}")
        outcome.happened = f"stopped, exit code {said.code}" if said.code else "a report of what is there"
        return [outcome]

    return do


def jobs() -> list[Job]:
    names = (
        *("the weights of an exported folder", "config.json of an exported folder"),
        *("the tokenizer of an exported folder", "a single file with a model"),
    )
    return [
        *(Job(GROUP, f"checkpoint read: {fault}", _checkpoint(fault)) for fault in inject.FILE_FAULTS),
        *(Job(GROUP, f"{name}: {fault}", _export(name, fault)) for name in names for fault in inject.FILE_FAULTS),
        *(Job(GROUP, f"a weight is {value}", _no_number(value)) for value in (float("nan"), float("-inf"))),
        Job(GROUP, "a weight of a run is nan", _no_number_in_run),
        *(Job(GROUP, f"report of a log: {fault}", _log(fault)) for fault in inject.FILE_FAULTS),
    ]
