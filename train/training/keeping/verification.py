"""Reads all of a run, or of a cache, and says what can be trusted."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from mom_jax.fields import ConfigError
from train.checkpoints import manifest, steps
from train.checkpoints.locate import FOLDER, Found, named_data
from train.checkpoints.manager import Meta
from train.checkpoints.run_config import CONFIG, read_config
from train.config import Config
from train.data import tokenizers
from train.data.cache import META, TokenCache, describe_left_out
from train.data.documents import SIDES
from train.data.prepared import cache_folders
from train.reporting import metrics
from train.training.keeping.damage import changed_log, missing_steps
from train.training.run import differences

State = Literal["good", "damaged", "unknown"]
CACHES = ("data-*", "bin-*")


@dataclasses.dataclass(frozen=True)
class Finding:
    """What was found of a part of a run: a file or folder. text: one line."""

    part: str
    state: State
    text: str


def verify(path: Path) -> Iterator[Finding]:
    """Of a run's folder, one cache, or a folder of caches. Raises ConfigError for what is none of them."""
    if (path / CONFIG).is_file() or (path / FOLDER).is_dir():
        yield from _run(path)
        return
    found = [path] if (path / META).is_file() else sorted(place for kind in CACHES for place in path.glob(kind))
    if not found:
        raise ConfigError(f"path={str(path)!r}: is no run's folder and has no token caches")
    for folder in found:
        yield from _cache(folder)


def _run(run: Path) -> Iterator[Finding]:
    config: Config | None = None
    try:
        config = read_config(run, "run")
        named = named_data(config.data)  # said before anything there is read
        yield Finding(CONFIG, "good", f"a run of {len(config.phases)} phases{f' on {named}' if named else ''}")
    except ConfigError as error:
        yield Finding(CONFIG, "damaged", str(error))
    if config is None:
        names = sorted(place.name for place in (run / FOLDER).glob("*") if place.is_dir())
    else:
        names = [phase.name for phase in config.phases]
    furthest: Meta | None = None
    for name in names:
        for step in steps.steps(run / FOLDER / name):
            finding, meta = _checkpoint(run, name, step)
            if meta is None and not steps.there(run / FOLDER / name, step):
                continue  # deleted while it was read, as training does with what it needs no more
            furthest = meta or furthest
            yield finding
        for place in sorted((run / FOLDER / name).glob(f"*{steps.DAMAGED}*")):
            yield Finding(f"{FOLDER}/{name}/{place.name}", "unknown", "set aside as damaged, and not used")
    if furthest is not None:
        if config is not None and (changed := differences(furthest.config, config)):
            text = f"is not what the checkpoints were trained with ({'; '.join(changed)})"
            yield Finding(CONFIG, "damaged", text)
        yield Finding(FOLDER, "good", f"training goes on from step {furthest.step} of {furthest.phase}")
    elif any(steps.steps(run / FOLDER / name) for name in names):
        yield Finding(FOLDER, "damaged", "none is whole: training has nothing to go on from")
    if config is not None:
        yield _log(run, config, furthest)
        yield _tokenizer(run, furthest)
        yield from _caches(run, config)


def _checkpoint(run: Path, phase: str, step: int) -> tuple[Finding, Meta | None]:
    found = Found(run, run / FOLDER / phase, step)
    part = f"{FOLDER}/{phase}/{step}"
    try:
        wrong = steps.problem(run / FOLDER / phase, step)
    except OSError as error:
        return Finding(part, "unknown", f"cannot be read ({error.strerror})"), None
    if wrong is not None:
        return Finding(part, "damaged", str(wrong)), None
    try:
        meta = found.meta()
    except ConfigError as error:
        return Finding(part, "damaged", str(error)), None
    if not manifest.sealed(run / FOLDER / phase / str(step)):
        return Finding(part, "unknown", "has all its parts, but no checksums to compare them with"), meta
    return Finding(part, "good", "all files have their checksums"), meta


def _log(run: Path, config: Config, furthest: Meta | None) -> Finding:
    file = run / metrics.FILE
    try:
        records = metrics.read(file) if file.exists() else []
    except ConfigError as error:
        return Finding(metrics.FILE, "damaged", str(error))
    if furthest is not None:
        lines = missing_steps(config, records, furthest.phase, furthest.step) + changed_log(run, furthest)
        if lines:
            return Finding(metrics.FILE, "damaged", lines[0].partition("; training goes on")[0])
    return Finding(metrics.FILE, "good", f"{len(records):,} records, no step is missing")


def _tokenizer(run: Path, furthest: Meta | None) -> Finding:
    try:
        file = tokenizers.find(run)
        if file is None:
            return Finding("tokenizer", "damaged", "there is none")
        own = tokenizers.load(file, field="tokenizer").fingerprint
    except ConfigError as error:
        return Finding("tokenizer", "damaged", str(error))
    if furthest is None:
        return Finding(file.name, "unknown", "can be read; no checkpoint says which it should be")
    if own != furthest.tokenizer:
        return Finding(
            file.name, "damaged", f"is not the one of the checkpoints ({own[:12]}, {furthest.tokenizer[:12]})"
        )
    return Finding(file.name, "good", "is the one that the checkpoints were trained with")


def _caches(run: Path, config: Config) -> Iterator[Finding]:
    try:
        file = tokenizers.find(run)
        tokenizer = None if file is None else tokenizers.load(file, field="tokenizer")
        folders = cache_folders(config.data, tokenizer)
    except ConfigError as error:
        yield Finding("data", "unknown", f"the cache cannot be looked for ({error})")
        return
    for folder in folders:
        if folder.exists():
            yield from _cache(folder)
        else:
            yield Finding(str(folder), "unknown", "is not there: the data will be prepared again")


def _cache(folder: Path) -> Iterator[Finding]:
    for side in SIDES:
        part = f"{folder}, {side}"
        try:
            cache = TokenCache.open(folder, side)
            cache.verify()
            documents = len(cache.starts) - 1
        except ConfigError as error:
            yield Finding(part, "damaged", str(error))
            continue
        broken = "" if cache.left_out is None else f"; of the whole source, {describe_left_out(cache.left_out)}"
        counts = f"{cache.num_tokens:,} tokens in {documents:,} documents"
        yield Finding(part, "good", f"{counts} have their checksums{broken}")
