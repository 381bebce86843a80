"""Data sets by Hugging Face's library `datasets`, streamed: `hf:NAME[/CONFIG][@REVISION][#COLUMN]`, or a path for NAME.

What is tokenized passes through, and is stored nowhere else. What a data set of the Hub is (its commit, its splits) is
found once, by `train.prepare`, and kept in the cache: from then on the source is that commit, and a cache that is whole
needs neither a network nor the library, which takes seconds to import. Needs the extra `[hf]`.
"""

import contextlib
import dataclasses
import functools
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mom_jax.fields import ConfigError, nearest, require
from train.data.cache import digest
from train.data.documents import SIDES, Item, Part, Source
from train.data.sources.columns import choose, rows, text_columns
from train.data.sources.files import Files
from train.files import read_record, write_record

REFERENCE = re.compile(
    r"(?P<name>[\w.-]+(/[\w.-]+)?)(/(?P<config>[\w.-]+))?(@(?P<revision>[\w./-]+))?",
)
_LOCAL = ("/", "./", "../", "~")
# The Hub's answers, by the classes of `huggingface_hub` and `datasets`.
_MISSING = "the Hub has no such data set, or none that is open to you (log in with: hf auth login)"
_REFUSED = {
    "RepositoryNotFoundError": _MISSING,
    "DatasetNotFoundError": _MISSING,
    "GatedRepoError": "the Hub wants its terms accepted, and you logged in (hf auth login)",
    "RevisionNotFoundError": "the Hub has no such revision of it",
}
_ROWS = 1000  # that are decoded at once


@dataclasses.dataclass(frozen=True)
class _Reference:
    """What a source names. name: a repository of the Hub, or a folder's path. revision: of the Hub's; None: newest."""

    source: str
    name: str
    config: str | None
    revision: str | None
    local: bool

    def error(self, why: str) -> ConfigError:
        return ConfigError(f"data.source={self.source!r}: {why}")

    @property
    def command(self) -> str:
        return f"python -m train.prepare {self.source.partition('#')[0]}"


@dataclasses.dataclass(frozen=True)
class _Found:
    """What a data set is. revision: the Hub's commit. splits: by name the shards, and the examples where that is known.
    columns: those with texts."""

    revision: str | None
    splits: dict[str, tuple[int, int | None]]
    columns: list[str]


def open_hf(source: str, root: Path) -> Source:
    """Opens a data set that `find_hf` found, or that lies in a folder. Reads nothing of the Hub's yet.

    A document is the text COLUMN of a row, by default `text` or else the only one with texts. Only the splits `train`
    and `validation` are read; without the second, the side of a document is left open. A part is a shard, mostly a
    file. root: the folder of caches. Raises `ConfigError` naming `data.source` where there is no such data set, or it
    was not prepared, and where the library is missing.
    """
    reference = _parse(source)
    stream: _Stream | None = None
    if reference.local:
        stream = _Stream(reference, None)
        found, identity = stream.found(), _identity(reference, stream)
    else:
        found = _read_record(reference, root)
        stream, identity = _Stream(reference, found), {"revision": found.revision}
    column = choose(source, found.columns)
    splits = {side: found.splits[side] for side in SIDES if side in found.splits}
    parts = []
    for side, (shards, examples) in splits.items():
        size = max(1, (examples or 0) // shards)
        for index in range(shards):
            read = functools.partial(stream.read, side, index, column, size)
            parts.append(Part(f"{side}/{index}", size, read, side if len(splits) > 1 else None))
    facts = {"source": source, "column": column, "shards": {side: shards for side, (shards, _) in splits.items()}}
    return Source(source, tuple(parts), {**facts, **identity})


def find_hf(source: str, root: Path, notify: Callable[[str], None]) -> None:
    """Asks the Hub what the data set of `source` is, and keeps that; does nothing for one that was found before, or for
    a folder. Raises `ConfigError` naming `data.source` where it is not there, cannot be reached, or is not to be read.
    """
    reference = _parse(source)
    if reference.local or _record(reference, root).exists():
        return
    notify(f"{source}: asking the Hugging Face Hub for {reference.name}")
    with _complaining(reference):
        from huggingface_hub import HfApi

        revision = HfApi().dataset_info(reference.name, revision=reference.revision).sha
    found = _Stream(dataclasses.replace(reference, revision=revision), None).found()
    choose(source, found.columns)
    root.mkdir(parents=True, exist_ok=True)
    write_record(_record(reference, root), dataclasses.asdict(found))
    notify(f"{source}: commit {revision}; delete {_record(reference, root)} to have a newer one looked for")


def _parse(source: str) -> _Reference:
    path = source.removeprefix("hf:").partition("#")[0]
    if not path.startswith(_LOCAL):
        match = REFERENCE.fullmatch(path)
        must = "must be hf:NAME, hf:NAME/CONFIG, with @REVISION and #COLUMN if need be, or hf:./FOLDER"
        require(match is not None, "data.source", source, must)
        assert match is not None
        return _Reference(source, match["name"], match["config"], match["revision"], local=False)
    folder, config = Path(path).expanduser(), None
    if not folder.is_dir():
        folder, config = folder.parent, folder.name
    require(folder.is_dir(), "data.source", source, f"there is no folder {str(folder)!r}")
    return _Reference(source, str(folder), config, None, local=True)


def _record(reference: _Reference, root: Path) -> Path:
    known = {"name": reference.name, "config": reference.config, "revision": reference.revision}
    return root / f"hf-{digest(known)}.json"


def _read_record(reference: _Reference, root: Path) -> _Found:
    file = _record(reference, root)
    if not file.exists():
        raise reference.error(f"is not prepared in {root}; run: {reference.command}")
    try:
        names = [field.name for field in dataclasses.fields(_Found)]
        record = read_record(file, str(file), names, 2**24)
        splits = {str(name): (shards, examples) for name, (shards, examples) in record["splits"].items()}
        found = _Found(record["revision"], splits, [str(name) for name in record["columns"]])
        known = isinstance(found.revision, str) and "train" in splits
        known = known and all(type(n) is int and n > 0 for n, _ in splits.values())
        known = known and all(n is None or (type(n) is int and n >= 0) for _, n in splits.values())
    except (ConfigError, KeyError, TypeError, ValueError, AttributeError):
        known = False
    if not known:
        raise reference.error(f"{file} is damaged; delete it and run: {reference.command}")
    return found


class _Stream:
    """A data set of the library's, opened when something of it is wanted. found: what it was."""

    def __init__(self, reference: _Reference, found: _Found | None) -> None:
        self._reference, self._found = reference, found

    @functools.cached_property
    def builder(self) -> Any:
        reference = self._reference
        with _complaining(reference):
            import datasets

            datasets.disable_progress_bars()
            datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # what it reports is raised as well
            revision = reference.revision if self._found is None else self._found.revision
            return datasets.load_dataset_builder(reference.name, reference.config, revision=revision)

    @functools.cached_property
    def _splits(self) -> Any:
        """`datasets.IterableDataset` by the names of splits."""
        with _complaining(self._reference):
            return self.builder.as_streaming_dataset()

    def found(self) -> _Found:
        """Raises `ConfigError` where there is no split `train`."""
        known = self.builder.info.splits or {}
        splits = {
            str(name): (split.num_shards, getattr(known.get(name), "num_examples", None) or None)
            for name, split in self._splits.items()
        }
        if "train" not in splits:
            raise self._reference.error(f"has no split 'train', only {', '.join(splits)}")
        return _Found(self._reference.revision, splits, text_columns(self._schema(self._splits["train"])))

    def _schema(self, split: Any) -> Any:
        """Of a split whose files say nothing of it, that of its first rows."""
        with _complaining(self._reference):
            if split.features is not None:
                return split.features.arrow_schema
            return next(iter(split.with_format("arrow").iter(_ROWS))).schema

    def read(self, side: str, index: int, column: str, size: int) -> Iterator[Item]:
        split = self._splits[side]
        if self._found is not None and split.num_shards != self._found.splits[side][0]:
            raise self._reference.error(f"has {split.num_shards} shards where it had {self._found.splits[side][0]}")
        number, where = 0, f"{side}/{index}"
        with _complaining(self._reference, f"shard {index} of {side!r}: "):
            shard = split.shard(split.num_shards, index).with_format("arrow")
            for table in shard.iter(_ROWS):
                for item in rows(self._reference.source, where, number, table.column(column)):
                    number += 1
                    yield item._replace(position=min(number, size))


def _identity(reference: _Reference, stream: _Stream) -> dict[str, Any]:
    """What identifies the files of a folder's data set."""
    found = (stream.builder.config.data_files or {}).values()
    paths = {Path(path) for files in found for path in files}
    names = sorted((os.path.relpath(path, reference.name), path) for path in paths)
    return Files(reference.source).fingerprint(names)


@contextlib.contextmanager
def _complaining(reference: _Reference, where: str = "") -> Iterator[None]:
    """What the library raises is complained of in one line: it has no common class of what its input may be."""
    try:
        yield
    except (ConfigError, MemoryError):
        raise
    except ImportError as error:
        need = f"needs a package that is not installed ({error}): pip install datasets (the extra 'hf')"
        raise reference.error(need) from None
    except Exception as error:
        why = " ".join(str(error).split())[:500]
        offline = isinstance(error, ConnectionError | TimeoutError) or "Connect" in type(error).__name__
        again = "; with a network, run the same command again: what is finished is kept" if offline else ""
        known = re.fullmatch(r"BuilderConfig '(.*)' not found. Available: \[(.*)\]", why)
        if known:
            names = [name.strip(" '") for name in known[2].split(",")]
            why = f"there is no configuration {known[1]!r}; {nearest(known[1], names)}"
            raise reference.error(why) from None
        if type(error).__name__ in _REFUSED:
            raise reference.error(f"{_REFUSED[type(error).__name__]}: {reference.name}") from None
        raise reference.error(f"{where}cannot be read ({type(error).__name__}: {why}){again}") from error
