"""Programs whose standard streams are closed, full, or have no reader."""

import io
import subprocess
import sys

import pytest
from programs import ROOT

from train.process.streams import Unfailing

PROGRAM = """
import os, sys
from train.process import streams
streams.secure()
for _ in range(3):
    print("said", file=sys.stderr, flush=True)
sys.stderr.writelines(["a", "b"])
opened = os.open(os.devnull, os.O_RDONLY)
os.write({told}, b"%d %s" % (opened, b"done"))
"""


@pytest.mark.parametrize("streams", ["2>/dev/full", "2>&-", "<&- 2>&-"])
def test_what_cannot_be_told_ends_nothing(streams, tmp_path):
    told = tmp_path / "told"
    program = PROGRAM.format(told=9)
    command = f'exec "$0" -c "$1" 9>{told} {streams}'
    done = subprocess.run(["bash", "-c", command, sys.executable, program], cwd=ROOT, capture_output=True)
    assert done.returncode == 0
    assert not done.stderr
    descriptor, word = told.read_text().split()
    assert word == "done"
    assert int(descriptor) > 2  # no file of the program's is taken for a standard stream


def test_a_stream_that_fails_loses_what_it_is_given():
    class Full(io.StringIO):
        def write(self, text):
            raise OSError(28, "No space left on device")

        def flush(self):
            self.write("")

    stream = Unfailing(Full())
    assert stream.write("text") == 4
    stream.writelines(["a", "b"])
    print("text", file=stream, flush=True)
    good = Unfailing(io.StringIO())
    print("text", file=good)
    assert good._stream.getvalue() == "text\n"
    assert not good.isatty()
