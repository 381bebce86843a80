"""Training and everything with input and output. Until a program begins, Ctrl-C ends it with one word."""

import signal
import sys

# Only in `python -m train.NAME`, of which this file is the first that runs, and in `mom NAME`: importing what a program
# needs takes seconds, and an exception would be raised in the middle of a library, which may take it for its own.
_python, _mom = sys.argv[:1] == ["-m"], "".join(sys.argv[:1]).startswith("mom ")
if _mom or (_python and any(word.startswith("train.") for word in sys.orig_argv)):
    from train.process.interrupts import end

    signal.signal(signal.SIGINT, end)
