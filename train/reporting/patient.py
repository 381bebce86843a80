"""A file that is appended to, also while the disk is full for a time."""

import contextlib
import os
from collections.abc import Callable
from io import FileIO


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
