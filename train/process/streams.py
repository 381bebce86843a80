"""The standard streams of a program: what cannot be told must not end what is done."""

import contextlib
import io
import os
import sys
from collections.abc import Iterable
from typing import Any, cast


class Unfailing(io.TextIOBase):
    """A stream for what is no result: what it cannot write, since the disk is full or the reader has left, is lost."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:  # type: ignore[override]
        self.write("".join(lines))

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()

    def isatty(self) -> bool:
        return bool(self._stream.isatty())

    def fileno(self) -> int:
        return int(self._stream.fileno())

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return str(self._stream.encoding)

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        return cast(str | None, self._stream.errors)


def secure() -> None:
    """Gives the process the streams that it was started without, which lead to nowhere (or the next file that it opens
    would be one of them), and makes of stderr one that does not fail."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115  as long as the process
    if not isinstance(sys.stderr, Unfailing):
        sys.stderr = Unfailing(sys.stderr)
