"""Training and everything with input and output. Until a program begins, Ctrl-C ends it with one word."""

import os
import signal
import sys


def _end(number: int, frame: object) -> None:
    os.write(2, b"interrupted\n")
    os._exit(130)


# Only in `python -m train.NAME`, of which this file is the first that runs: importing what a program needs takes
# seconds, and an exception would be raised in the middle of a library, which may take it for its own.
if sys.argv[:1] == ["-m"] and any(word.startswith("train.") for word in sys.orig_argv):
    signal.signal(signal.SIGINT, _end)
