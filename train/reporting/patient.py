"""Files that are appended to, also while the disk is full for a time: the log, and TensorBoard's events."""

import contextlib
import os
import sys
import time
from collections.abc import Callable
from io import FileIO
from pathlib import Path
from typing import Any

_PATIENT = "patient"  # before a folder's name: tensorboardX writes there by `_Events`


class PatientFile:
    """Appends bytes. What cannot be written now is kept, and written before what follows; no byte is there twice.

    open_file: opens the file, unbuffered; is called with the first bytes, again if it could not. most: bytes that are
    kept; with more it is given up, and nothing is written any more.
    """

    def __init__(self, open_file: Callable[[], FileIO], most: int | None = None) -> None:
        self._open_file, self._most = open_file, most
        self._file: FileIO | None = None
        self._pending = bytearray()

    def write(self, data: bytes) -> None:
        if self._most is not None and len(self._pending) > self._most:
            return
        self._pending += data
        with contextlib.suppress(OSError):
            self._push()

    def flush(self) -> None:
        """Makes everything survive a crash of the machine. Raises OSError where it cannot be written."""
        self._push()
        if self._file is not None:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Writes what can be written; raises nothing."""
        with contextlib.suppress(OSError):
            self.flush()
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None

    def _push(self) -> None:
        while self._pending:
            if self._file is None:
                self._file = self._open_file()
            del self._pending[: self._file.write(self._pending)]


def event_writer(folder: Path, purge_step: int | None) -> Any:
    """tensorboardX's, with patient files. purge_step: from where on TensorBoard hides what earlier files have.

    tensorboardX would import PyTorch where that is installed, which takes seconds and serves its images and graphs: of
    numbers it needs nothing.
    """
    hidden = "torch" not in sys.modules
    if hidden:
        sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        from tensorboardX import SummaryWriter
        from tensorboardX.record_writer import register_writer_factory
    finally:
        if hidden:
            del sys.modules["torch"]
    register_writer_factory(_PATIENT, _Events)
    # TensorBoard reads event files in the order of their names; without the suffix two within one second would be one,
    # the later overwriting the earlier.
    suffix = f".{time.time_ns()}"
    return SummaryWriter(f"{_PATIENT}:{folder}", purge_step=purge_step, filename_suffix=suffix)


class _Events:
    """How tensorboardX opens its files. Its own would end the thread that writes, and then wait for it for ever, when a
    disk is full."""

    @staticmethod
    def directory_check(path: str) -> None:
        with contextlib.suppress(OSError):
            os.makedirs(path.removeprefix(f"{_PATIENT}:"), exist_ok=True)

    @staticmethod
    def open(path: str) -> "_EventFile":
        return _EventFile(path.removeprefix(f"{_PATIENT}:"))


class _EventFile(PatientFile):
    """The log has the same numbers: events that cannot be written stop nothing."""

    def __init__(self, path: str) -> None:
        super().__init__(lambda: FileIO(path, "ab"), most=2**24)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            super().flush()
