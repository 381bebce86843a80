"""Tokenizes a source into a cache, with all cores and bounded memory; interrupted, it goes on where it was."""

import contextlib
import dataclasses
import itertools
import json
import os
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from mom_jax.fields import ConfigError
from train.data.cache import META, STEMS, build_folder, write_json
from train.data.documents import SIDES, Document, Side, Source, is_held_out
from train.data.tokenizer import Tokenizer

JOURNAL = "journal.json"
# Characters that are tokenized at once, and seconds between two points from which an interrupted work goes on.
BATCH, COMMIT_SECONDS = 2**21, 20.0

# Called with the finished share, 0 to 1, and the tokens so far.
Report = Callable[[float, int], None]


@dataclasses.dataclass
class _Written:
    """What of a side is safely on disk."""

    tokens: int = 0
    documents: int = 0
    crc32: int = 0
    ends_crc32: int = 0


class _SideFiles:
    """The files of a side while they grow."""

    def __init__(
        self, folder: Path, side: Side, dtype: np.dtype, written: _Written, stack: contextlib.ExitStack
    ) -> None:
        self.written, self._dtype = written, dtype
        stem = STEMS[side]
        self._tokens = stack.enter_context(_cut_to(folder / f"{stem}.bin", written.tokens * dtype.itemsize))
        self._ends = stack.enter_context(_cut_to(folder / f"{stem}.ends", written.documents * 8))

    def append(self, ids: np.ndarray, last: bool) -> None:
        content = np.ascontiguousarray(ids, self._dtype)
        self._tokens.write(content)
        self.written.crc32 = zlib.crc32(content.data, self.written.crc32)
        self.written.tokens += len(ids)
        if last:
            end = np.int64(self.written.tokens).tobytes()
            self._ends.write(end)
            self.written.ends_crc32 = zlib.crc32(end, self.written.ends_crc32)
            self.written.documents += 1

    def sync(self) -> None:
        for file in (self._tokens, self._ends):
            file.flush()
            os.fsync(file.fileno())


def _cut_to(path: Path, size: int) -> Any:
    """The file, open for writing after its first `size` bytes; what lies behind them was not finished."""
    file = path.open("r+b" if path.exists() else "w+b")
    if os.fstat(file.fileno()).st_size < size:
        raise ConfigError(f"data.cache: {str(path)!r} is shorter than it was; delete its folder")
    file.truncate(size)
    file.seek(size)
    return file


def encode(
    folder: Path, source: Source, tokenizer: Tokenizer, fraction: float, meta: dict[str, Any], report: Report
) -> None:
    """Tokenizes `source` into the cache `folder`; does nothing if it is there.

    fraction: of the documents held out, where the source has no split of its own. meta: goes into `meta.json`. Raises
    `ConfigError` for a source that cannot be read, a side without documents and a folder that cannot be written.
    """

    def fill(partial: Path) -> None:
        dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32)
        part, pieces, written = _read_journal(partial, source)
        with contextlib.ExitStack() as stack:
            files = {side: _SideFiles(partial, side, dtype, written[side], stack) for side in SIDES}
            _fill(partial, files, source, tokenizer, fraction, part, pieces, report)
        _check_sides(written, fraction)
        sides: dict[str, Any] = {
            side: {"file": f"{STEMS[side]}.bin", **dataclasses.asdict(written[side])} for side in SIDES
        }
        vocabulary = {"vocab_size": tokenizer.vocab_size, "eos_id": tokenizer.eos_id, "dtype": dtype.name}
        write_json(partial / META, {**meta, "tokenizer": tokenizer.fingerprint, **vocabulary, **sides})

    build_folder(folder, fill, keep=lambda partial: (partial / JOURNAL).exists())
    # Only now: whatever happens before, no work is lost.
    (folder / JOURNAL).unlink(missing_ok=True)


def _read_journal(partial: Path, source: Source) -> tuple[int, int, dict[Side, _Written]]:
    """(part, pieces read of it, what is written) from which to go on."""
    try:
        journal = json.loads((partial / JOURNAL).read_text())
        known = source.parts[journal["part"]].name == journal["name"]
    except (FileNotFoundError, IndexError):
        known = False
    if not known:
        return 0, 0, {side: _Written() for side in SIDES}
    return journal["part"], journal["pieces"], {side: _Written(**journal[side]) for side in SIDES}


def _fill(
    partial: Path,
    files: dict[Side, _SideFiles],
    source: Source,
    tokenizer: Tokenizer,
    fraction: float,
    part: int,
    pieces: int,
    report: Report,
) -> None:
    sizes = [0, *itertools.accumulate(part.size for part in source.parts)]
    report(sizes[part] / max(sizes[-1], 1), sum(f.written.tokens for f in files.values()))
    committed = time.monotonic()
    for batch in _ahead(_batches(source, part, pieces), tokenizer):
        for document, side, ids in batch.results(fraction, tokenizer.eos_id):
            files[side].append(ids, document.last)
        report((sizes[batch.part] + batch.position) / max(sizes[-1], 1), sum(f.written.tokens for f in files.values()))
        if time.monotonic() - committed > COMMIT_SECONDS:
            for side_files in files.values():
                side_files.sync()
            done: dict[str, Any] = {side: dataclasses.asdict(side_files.written) for side, side_files in files.items()}
            place = {"part": batch.part, "name": source.parts[batch.part].name, "pieces": batch.pieces}
            write_json(partial / JOURNAL, place | done)
            committed = time.monotonic()
    for side_files in files.values():
        side_files.sync()
    report(1.0, sum(f.written.tokens for f in files.values()))


@dataclasses.dataclass
class _Batch:
    """Some documents and, when it is ready, their tokens. part, pieces, position: where in the source it ends."""

    documents: list[Document]
    side: Side | None
    part: int
    pieces: int
    position: int
    ids: Any = None

    def results(self, fraction: float, eos_id: int) -> Iterator[tuple[Document, Side, np.ndarray]]:
        for document, ids in zip(self.documents, self.ids.result(), strict=True):
            side = self.side or ("validation" if is_held_out(document.name, fraction) else "train")
            yield document, side, np.append(ids, eos_id) if document.last else np.asarray(ids, np.int64)


def _batches(source: Source, first: int, skip: int) -> Iterator[_Batch]:
    """The documents from piece `skip` of part `first` on, a good number at a time. A batch is of one part."""
    for index in range(first, len(source.parts)):
        part = source.parts[index]
        pieces = skip if index == first else 0
        waiting: list[Document] = []
        size = 0
        for document in itertools.islice(part.read(), pieces, None):
            waiting.append(document)
            size += len(document.text) + 64
            pieces += 1
            if size >= BATCH:
                yield _Batch(waiting, part.side, index, pieces, document.position)
                waiting, size = [], 0
        if waiting:
            yield _Batch(waiting, part.side, index, pieces, part.size)


def _ahead(batches: Iterator[_Batch], tokenizer: Tokenizer) -> Iterator[_Batch]:
    """The batches, tokenized; the next is read and tokenized while one is written."""
    with ThreadPoolExecutor(2) as pool:
        ready: list[_Batch] = []
        for batch in batches:
            texts = [document.text for document in batch.documents]
            batch.ids = pool.submit(tokenizer.encode_batch, texts)
            ready.append(batch)
            if len(ready) > 2:
                yield ready.pop(0)
        yield from ready


def _check_sides(written: dict[Side, _Written], fraction: float) -> None:
    total = sum(side.documents for side in written.values())
    if total == 0:
        raise ConfigError("data.source: there are no documents to tokenize")
    for side, complaint in (("validation", "holds out none of"), ("train", "leaves for training none of")):
        if written[side].documents == 0:  # type: ignore[index]
            must = f"{complaint} the {total} documents; use more documents or another fraction"
            if total == 1:
                must = "there is one document only; use more (a single text file is divided unless it is compressed)"
            raise ConfigError(f"data.validation_fraction={fraction!r}: {must}")
