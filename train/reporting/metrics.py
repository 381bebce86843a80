"""A run's log: `metrics.jsonl`, one JSON object a line, and the same numbers as TensorBoard scalars.

The file is the record of the run: on resume it is cut back to the checkpoint, so that no step appears twice.
TensorBoard's events cannot be cut; there a purge mark hides the repeated steps.
"""

import dataclasses
import errno
import json
import os
import types
import zlib
from collections.abc import Callable, Iterator
from io import FileIO
from pathlib import Path
from typing import Any, NoReturn

from mom_jax.fields import ConfigError
from train.files import CHECKSUM, open_own, read_bytes, to_json, with_checksum, without_checksum, write_whole
from train.numbers import for_json
from train.reporting.patient import PatientFile, event_writer

FILE = "metrics.jsonl"
MOST = 2**33  # bytes of a log that is read
EVENTS = "tensorboard"  # in a run's folder
# What the last record of a phase has, without a checksum where an older version wrote it.
_FINAL = ("kind", "phase", "step", "loss", "perplexity", "tokens", "routers", "exchanged", "prompt", "sample")


@dataclasses.dataclass(frozen=True)
class LogMark:
    """What the log was at a time: its size in bytes, and the CRC-32 of them. More may follow; they must not change."""

    size: int = 0
    crc32: int = 0

    def fits(self, path: Path) -> bool:
        """Whether the file still begins with the same bytes."""
        return _marked(path, LogMark(), self.size) == self


def _marked(path: Path, before: LogMark, size: int | None = None) -> LogMark:
    """`before` and what follows it in the file, up to `size` bytes in all."""
    at, checksum = before.size, before.crc32
    if not path.is_file():  # to open a pipe would be to wait for its writer; whoever reads the records refuses it
        return LogMark()
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(at)
            while block := file.read(2**20 if size is None else min(2**20, size - at)):
                at, checksum = at + len(block), zlib.crc32(block, checksum)
    except FileNotFoundError:
        return LogMark()
    return LogMark(at, checksum)


class MetricsLog:
    """Appends records to `folder/metrics.jsonl` and scalars to `folder/tensorboard/`.

    Every record has `kind` (data, train, validation, analysis, sign, watch, final), `phase` and `step`, counted from
    the phase's start. Also a context manager that closes on exit. Nothing is created before the first `write`; without
    `write`, for processes beside the one that does, nothing at all.

    listeners: are told of every record that is written, as it is read again.
    """

    def __init__(self, folder: Path, *, write: bool = True) -> None:
        self._folder, self._writes = Path(folder), write
        self._path = self._folder / FILE
        self._file: PatientFile | None = None
        self._board: Any = None
        self._purge_step: int | None = None
        self._mark = LogMark()
        self.listeners: list[Callable[[dict[str, Any]], None]] = []

    def truncate(self, phase_order: list[str], phase: str, step: int, *, offset: int = 0) -> list[str]:
        """Goes back to the point of training after `step` steps of `phase`; training continues from there.

        Keeps all lines of earlier phases, those of `phase` up to and including `step`, and those of phases that
        `phase_order` does not name. A half-written last line is dropped, and so are a last one that is no record and
        final records that have changed since they were written: a sentence about each of these is returned. The file
        is replaced atomically.

        Args:
            phase_order: the names of all phases, first to last.
            offset: steps of all earlier phases, as in `write`.

        Raises ValueError if `phase` is not in `phase_order`, ConfigError if a line but the last is no JSON object.
        """
        if phase not in phase_order:
            raise ValueError(f"phase={phase!r}: must be one of {phase_order}")
        self.close()
        self._purge_step = offset + step + 1
        if not self._path.exists() or not self._writes:
            return []
        later = set(phase_order[phase_order.index(phase) + 1 :])

        def keep(record: dict[str, Any]) -> bool:
            if record.get("phase") == phase:
                return record.get("step", 0) <= step
            return record.get("phase") not in later

        return self._rewrite(keep)

    def _rewrite(self, keep: Callable[[dict[str, Any]], bool]) -> list[str]:
        changed: list[str] = []
        lines = [line + "\n" for line, record in _lines(self._path, changed) if keep(record)]
        write_whole(self._path, "".join(lines).encode())
        self._mark = LogMark()
        return changed

    def write(self, record: dict[str, Any], *, offset: int = 0) -> None:
        """Appends `record`, as `for_json` makes it; the final one of a phase, for which no checkpoint vouches, with a
        checksum.

        offset: steps of all earlier phases, so that TensorBoard's steps count across phases.
        """
        if not self._writes:
            return
        if self._file is None:
            self._file = PatientFile(self._open)
        record = for_json(record)
        line = with_checksum(record) if record.get("kind") == "final" else record
        self._file.write(to_json(line))  # at once, for whoever watches
        self._write_scalars(record, offset)
        for listener in self.listeners:
            listener(record)

    def records(self, phase: str) -> list[dict[str, Any]]:
        """What the file has of one phase; nothing in processes that do not write."""
        if not self._writes or not self._path.exists():
            return []
        return [record for record in read(self._path) if record.get("phase") == phase]

    def flush(self) -> None:
        """Makes everything written so far survive a crash of the machine. Raises OSError where the log cannot be
        written; nothing of it is lost, the next call tries again."""
        if self._file is not None:
            self._file.flush()
        if self._board is not None:
            self._board.flush()

    def mark(self) -> LogMark:
        """What is on disk by now; only what was added since the last call is read. Nothing in processes that do not
        write."""
        if not self._writes:
            return LogMark()
        self._mark = _marked(self._path, self._mark)
        return self._mark

    def close(self) -> None:
        """Writes what can be written and closes; a later `write` opens again."""
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._board is not None:
            self._board.close()
            self._board = None

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        self.close()

    def _open(self) -> FileIO:
        self._folder.mkdir(parents=True, exist_ok=True)
        os.close(open_own(self._path, os.O_WRONLY | os.O_APPEND, str(self._folder)))
        # A line that a killed run left half-written must not merge with the first one of this run.
        if self._path.exists() and not self._path.read_bytes().endswith(b"\n"):
            self._rewrite(lambda record: True)
        return FileIO(open_own(self._path, os.O_WRONLY | os.O_APPEND, str(self._folder)), "ab")

    def _write_scalars(self, record: dict[str, Any], offset: int) -> None:
        if not isinstance(record.get("step"), int):
            return
        if self._board is None:
            self._board = event_writer(self._folder / EVENTS, self._purge_step)
        step = offset + record["step"]
        for name, value in scalars(record).items():
            self._board.add_scalar(name, value, step)
            if record.get("kind") == "sign":
                self._board.add_text(name, record["text"], step)


def read(path: Path, say: Callable[[str], None] | None = None) -> list[dict[str, Any]]:
    """The records of the file `path`; a half-written last line, which has no end, is left out.

    Raises FileNotFoundError, and ConfigError if a line is not a JSON object, or if a final record has changed since it
    was written. With `say` the last line, where it is none, and such records are left out instead: it is told.
    """
    changed: list[str] = []
    records = [record for _, record in _lines(Path(path), changed)]
    for line in changed:
        if say is None:
            raise ConfigError(f"{line}; training the run again makes it again where that can be")
        say(f"{line}; it is left out")
    return records


def _lines(path: Path, changed: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The complete lines of the file, without their ends, each with its record, its checksum aside. changed: gets a
    sentence about what is left out because it has changed: final records, and a last line that is no record."""
    # Bytes that are no UTF-8 can only come from a write that was cut off; the replaced line is no JSON, or is not last.
    if not path.exists():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    text = read_bytes(path, str(path), MOST).decode("utf-8", errors="replace")
    lines, torn = text.split("\n"), not text.endswith("\n")
    while lines and not lines[-1]:
        lines.pop()
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line, parse_constant=_no_constant)
        except (ValueError, RecursionError):
            record = None
        if not _is_record(record):
            odd = ", of which kind and phase are texts and step an integer" if isinstance(record, dict) else ""
            wrong = f"{path}, line {number}: must be a JSON object{odd}"
            if number < len(lines):
                raise ConfigError(wrong)
            if not torn:
                changed.append(wrong)
            continue
        if record.get("kind") == "final" or CHECKSUM in record:
            try:
                record = without_checksum(record, _FINAL)
            except ValueError as error:
                changed.append(f"{path}, line {number}: the final record {error}")
                continue
        yield line, record


def _is_record(record: Any) -> bool:
    return (
        isinstance(record, dict)
        and all(isinstance(record.get(name, ""), str) for name in ("kind", "phase"))
        and type(record.get("step", 0)) is int
    )


def _no_constant(value: str) -> NoReturn:
    raise ValueError(f"{value} is no number of JSON's")


def scalars(record: dict[str, Any]) -> dict[str, float]:
    """The numbers of a record by the names that TensorBoard has for them; a sign is a 1. None without a step."""
    if not isinstance(record.get("step"), int):
        return {}
    kind = record.get("kind", "train")
    if kind == "sign":
        names = (record[key] for key in ("phase", "kind", "sign", "side"))
        return {"/".join(str(name) for name in names if name is not None): 1.0}
    start = [str(record.get("phase", "run")), *([] if kind == "train" else [str(kind)])]
    numbers = _scalars({k: v for k, v in record.items() if k not in ("kind", "phase", "step")})
    return {"/".join([*start, *path]): value for path, value in numbers}


def _scalars(tree: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], float]]:
    """(path, value) of every number in the record; a list of numbers is represented by its mean.

    Tables (the usage of modules), histograms and numbers that are unknown are left out; the level `routers` is, too.
    """
    if isinstance(tree, dict):
        for key, value in tree.items():
            if key != "histogram":  # its mean says nothing
                yield from _scalars(value, path if key == "routers" else (*path, key))
    elif _is_number(tree):
        yield path, float(tree)
    elif isinstance(tree, list) and tree and all(_is_number(item) for item in tree):
        yield path, sum(tree) / len(tree)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
