"""Tokenizes a source into a cache, with all cores and bounded memory; interrupted, it goes on where it was."""

import contextlib
import dataclasses
import itertools
import os
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from mom_jax.fields import ConfigError
from train.data.cache import META, STEMS, build_folder, describe_left_out
from train.data.documents import SIDES, Broken, Document, Item, Side, Source, side_of
from train.data.tokenizers import Tokenizer
from train.files import open_own, read_record, write_record

JOURNAL = "journal.json"
# Characters that are tokenized at once, and seconds between two points from which an interrupted work goes on.
BATCH, COMMIT_SECONDS = 2**21, 20.0

# Called with the finished share, 0 to 1, and the tokens so far.
Report = Callable[[float, int], None]


@dataclasses.dataclass
class _Written:
    """What of a side is safely on disk.

    begun, begun_crc32: tokens, and their checksum, before the document that is being written.
    """

    tokens: int = 0
    documents: int = 0
    crc32: int = 0
    ends_crc32: int = 0
    begun: int = 0
    begun_crc32: int = 0


class _Writer(contextlib.ExitStack):
    """The files of a cache that is not yet in place, from wherever the journal says that they are safely on disk.

    part, pieces: the source's part from which to go on, and how many pieces of it are there already. written: of each
    side, what is in its files. left_out: what was broken, counted by its kind.
    """

    def __init__(self, partial: Path, source: Source, dtype: np.dtype) -> None:
        super().__init__()
        self._journal, self._source, self._dtype = partial / JOURNAL, source, dtype
        self.part, self.pieces, self.written, self.left_out = _read_journal(self._journal, source)
        self._files: dict[Side, tuple[Any, Any]] = {}
        with contextlib.ExitStack() as opened:  # closed here if one of them cannot be opened
            for side, stem in STEMS.items():
                done = self.written[side]
                tokens = opened.enter_context(_cut_to(partial / f"{stem}.bin", done.tokens * dtype.itemsize))
                ends = opened.enter_context(_cut_to(partial / f"{stem}.ends", done.documents * 8))
                self._files[side] = tokens, ends
            self.enter_context(opened.pop_all())

    @property
    def tokens(self) -> int:
        return sum(side.tokens for side in self.written.values())

    def facts(self) -> dict[str, Any]:
        """Of each side, for `meta.json`."""
        names = ("tokens", "documents", "crc32", "ends_crc32")
        return {side: {name: getattr(written, name) for name in names} for side, written in self.written.items()}

    def append(self, side: Side, ids: np.ndarray, last: bool) -> None:
        (tokens, ends), written = self._files[side], self.written[side]
        content = np.ascontiguousarray(ids, self._dtype)
        tokens.write(content)
        written.crc32 = zlib.crc32(content.data, written.crc32)
        written.tokens += len(ids)
        if last:
            end = np.int64(written.tokens).tobytes()
            ends.write(end)
            written.ends_crc32 = zlib.crc32(end, written.ends_crc32)
            written.documents += 1
            written.begun, written.begun_crc32 = written.tokens, written.crc32

    def leave_out(self, side: Side, kind: str) -> None:
        """Counts what is broken, and drops the pieces of it that were written before that was seen."""
        (tokens, _), written = self._files[side], self.written[side]
        if written.tokens > written.begun:
            written.tokens, written.crc32 = written.begun, written.begun_crc32
            tokens.seek(written.tokens * self._dtype.itemsize)
            tokens.truncate()
        self.left_out[kind] = self.left_out.get(kind, 0) + 1

    def sync(self) -> None:
        """Everything so far is on disk after this."""
        for file in itertools.chain.from_iterable(self._files.values()):
            file.flush()
            os.fsync(file.fileno())

    def commit(self, part: int, pieces: int) -> None:
        """Whatever happens from here on, work goes on after so many pieces of this part."""
        self.sync()
        place = {"part": part, "name": self._source.parts[part].name, "pieces": pieces}
        sides = {side: dataclasses.asdict(written) for side, written in self.written.items()}
        write_record(self._journal, place | sides | {"left_out": self.left_out})


_Place = tuple[int, int, dict[Side, _Written], dict[str, int]]


def _read_journal(journal: Path, source: Source) -> _Place:
    """(part, pieces read of it, what is written, what was left out) from which to go on."""
    anew: _Place = 0, 0, {side: _Written() for side in SIDES}, {}
    if not journal.exists():
        return anew
    try:
        record = read_record(journal, "journal", most=2**20)
        part, pieces, written = record["part"], record["pieces"], {side: _Written(**record[side]) for side in SIDES}
        left_out = dict(record.get("left_out", {}))
        numbers = [part, pieces, *(n for side in written.values() for n in dataclasses.astuple(side))]
        numbers += left_out.values()
        known = all(type(n) is int and n >= 0 for n in numbers) and source.parts[part].name == record["name"]
    except (ConfigError, KeyError, TypeError, ValueError, IndexError):
        known = False
    # What a damaged journal, or one of other files, says of the work so far is not to be trusted: it begins anew.
    return (part, pieces, written, left_out) if known else anew


def _cut_to(path: Path, size: int) -> Any:
    """The file, open for writing after its first `size` bytes; what lies behind them was not finished."""
    file = os.fdopen(open_own(path, os.O_RDWR, "data.cache"), "r+b")
    if os.fstat(file.fileno()).st_size < size:
        raise ConfigError(f"data.cache: {str(path)!r} is shorter than it was; delete its folder")
    file.truncate(size)
    file.seek(size)
    return file


def encode(
    folder: Path,
    source: Source,
    tokenizer: Tokenizer,
    fraction: float,
    meta: dict[str, Any],
    report: Report,
    notify: Callable[[str], None] = lambda text: None,
) -> None:
    """Tokenizes `source` into the cache `folder`; does nothing if it is there.

    fraction: of the documents held out, where the source has no split of its own. meta: goes into `meta.json`.
    notify: see `build_folder`. Raises `ConfigError` for a source that cannot be read, a side without documents and a
    folder that cannot be written.
    """

    def fill(partial: Path) -> None:
        dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32)
        with _Writer(partial, source, dtype) as writer:
            _fill(writer, source, tokenizer, fraction, report)
        _check_sides(writer.written, writer.left_out, fraction)
        facts = writer.facts()
        broken = {} if source.on_bad == "fail" else {"left_out": writer.left_out}
        sides: dict[str, Any] = {side: {"file": f"{STEMS[side]}.bin", **facts[side]} for side in SIDES}
        vocabulary = {"vocab_size": tokenizer.vocab_size, "eos_id": tokenizer.eos_id, "dtype": dtype.name}
        write_record(partial / META, {**meta, "tokenizer": tokenizer.fingerprint, **vocabulary, **broken, **sides})

    build_folder(folder, fill, notify, keep=lambda partial: (partial / JOURNAL).exists())
    # Only now: whatever happens before, no work is lost.
    (folder / JOURNAL).unlink(missing_ok=True)


def _fill(writer: _Writer, source: Source, tokenizer: Tokenizer, fraction: float, report: Report) -> None:
    sizes = [0, *itertools.accumulate(part.size for part in source.parts)]
    whole = max(sizes[-1], 1)
    report(sizes[writer.part] / whole, writer.tokens)
    committed = time.monotonic()
    for batch in _ahead(_batches(source, writer.part, writer.pieces), tokenizer):
        for item, side, ids in batch.results(fraction, tokenizer.eos_id):
            if isinstance(item, Broken):
                writer.leave_out(side, item.kind)
            else:
                writer.append(side, ids, item.last)
        report((sizes[batch.part] + batch.position) / whole, writer.tokens)
        if time.monotonic() - committed > COMMIT_SECONDS:
            writer.commit(batch.part, batch.pieces)
            committed = time.monotonic()
    writer.sync()
    report(1.0, writer.tokens)


@dataclasses.dataclass
class _Batch:
    """Some documents and, when it is ready, their tokens. part, pieces, position: where in the source it ends."""

    items: list[Item]
    side: Side | None
    part: int
    pieces: int
    position: int
    ids: Any = None

    @property
    def texts(self) -> list[str]:
        return [item.text for item in self.items if isinstance(item, Document)]

    def results(self, fraction: float, eos_id: int) -> Iterator[tuple[Item, Side, np.ndarray]]:
        """Everything with its side and tokens; of what is broken, no tokens."""
        found = iter(self.ids.result())
        for item in self.items:
            side = side_of(self.side, item.name, fraction)
            if isinstance(item, Broken):
                yield item, side, np.zeros(0, np.int64)
            else:
                ids = next(found)
                yield item, side, np.append(ids, eos_id) if item.last else np.asarray(ids, np.int64)


def _batches(source: Source, first: int, skip: int) -> Iterator[_Batch]:
    """The documents from piece `skip` of part `first` on, a good number at a time. A batch is of one part."""
    for index in range(first, len(source.parts)):
        part = source.parts[index]
        pieces = skip if index == first else 0
        waiting: list[Item] = []
        size = 0
        for item in itertools.islice(source.read(part), pieces, None):
            waiting.append(item)
            size += 64 + (len(item.text) if isinstance(item, Document) else 0)
            pieces += 1
            if size >= BATCH:
                yield _Batch(waiting, part.side, index, pieces, item.position)
                waiting, size = [], 0
        if waiting:
            yield _Batch(waiting, part.side, index, pieces, part.size)


def _ahead(batches: Iterator[_Batch], tokenizer: Tokenizer) -> Iterator[_Batch]:
    """The batches, tokenized; the next is read and tokenized while one is written."""
    with ThreadPoolExecutor(2) as pool:
        ready: list[_Batch] = []
        for batch in batches:
            batch.ids = pool.submit(tokenizer.encode_batch, batch.texts)
            ready.append(batch)
            if len(ready) > 2:
                yield ready.pop(0)
        yield from ready


def _check_sides(written: dict[Side, _Written], left_out: dict[str, int], fraction: float) -> None:
    total = sum(side.documents for side in written.values())
    if total == 0:
        others = f"; {describe_left_out(left_out)}" if left_out else ""
        raise ConfigError(f"data.source: there are no documents to tokenize{others}")
    for side, complaint in (("validation", "holds out none of"), ("train", "leaves for training none of")):
        if written[side].documents == 0:  # type: ignore[index]
            must = f"{complaint} the {total} documents; use more documents or another fraction"
            if total == 1:
                must = "there is one document only; use more (a single text file is divided unless it is compressed)"
            raise ConfigError(f"data.validation_fraction={fraction!r}: {must}")
