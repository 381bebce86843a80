"""Starts programs in processes that have all imports behind them: most of what a tiny run takes is starting.

This file is run as a process: it imports what training needs, and forks for every request on its standard input, one
JSON object a line, before anything has started a thread. What follows in the new process is the program as it is, but
for pictures and routes in the report and the samples at a phase's end.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]


class Nursery:
    """Of such processes; ends with its context."""

    def __enter__(self) -> "Nursery":
        path = os.pathsep.join(str(ROOT / part) for part in ("tests", "tests/helpers", "tests/faults", "."))
        own = os.environ | {"PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1"}
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
        self._process = subprocess.Popen([sys.executable, "-m", "campaign.nursery"], cwd=ROOT, env=own, **pipes)
        assert self._ask({"hello": 1}) == {"threads": 1}
        return self

    def __exit__(self, *error: object) -> None:
        self._process.stdin.close()  # type: ignore[union-attr]
        self._process.wait()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())  # type: ignore[union-attr]

    def start(self, program: str, arguments: Sequence[object], folder: Path, name: str = "said") -> "Child":
        """A program, such as `train.main`; what it says goes to files in `folder`."""
        files = [str(folder / f"{name}.{kind}") for kind in ("out", "err")]
        request = {"program": program, "arguments": [str(argument) for argument in arguments], "files": files}
        return Child(self, int(self._ask(request)["pid"]), [Path(file) for file in files])


class Child:
    """Such a program, to be handled as a `subprocess.Popen`."""

    def __init__(self, nursery: Nursery, pid: int, files: list[Path]) -> None:
        self.nursery, self.pid, self.files = nursery, pid, files
        self.code: int | None = None

    def poll(self) -> int | None:
        if self.code is None:
            self.code = self.nursery._ask({"poll": self.pid})["code"]
        return self.code

    def wait(self, seconds: float = 300) -> int:
        """Its exit code, or minus the signal's number; it is killed when it takes longer."""
        end = time.monotonic() + seconds
        while self.poll() is None:
            if time.monotonic() > end:
                self.send_signal(signal.SIGKILL)
            time.sleep(0.02)
        assert self.code is not None
        return self.code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    @property
    def out(self) -> str:
        return self.files[0].read_text(errors="replace")

    @property
    def err(self) -> str:
        return self.files[1].read_text(errors="replace")


# -- the process -------------------------------------------------------------------------------------------------------


def _serve() -> tuple[str, list[str]] | None:
    """Answers requests; returns in a new process what it is to run, and None at the end."""
    for line in sys.stdin:
        request = json.loads(line)
        if "program" in request:
            pid = os.fork()
            if pid == 0:
                _redirect(request["files"])
                return request["program"], request["arguments"]
            answer: dict[str, Any] = {"pid": pid}
        elif "poll" in request:
            pid, status = os.waitpid(request["poll"], os.WNOHANG)
            answer = {"code": None if pid == 0 else os.waitstatus_to_exitcode(status)}
        else:
            answer = {"threads": len(os.listdir("/proc/self/task"))}
        print(json.dumps(answer), flush=True)
    return None


def _redirect(files: list[str]) -> None:
    os.setpgid(0, 0)
    for descriptor, file in zip((0, 1, 2), ("/dev/null", *files), strict=True):
        opened = os.open(file, os.O_RDWR | os.O_CREAT | (os.O_TRUNC if descriptor else 0), 0o644)
        os.dup2(opened, descriptor)
        os.close(opened)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115  the other one has read ahead


def _main() -> None:
    import importlib

    import conftest  # noqa: F401
    import matplotlib  # noqa: F401
    import orbax.checkpoint  # noqa: F401
    import tensorboardX  # noqa: F401

    from campaign import workshop
    from train import cli
    from train.reporting import page  # noqa: F401
    from train.training import ending

    workshop.make_short(setattr)
    ending._write_routes = lambda *args: None
    for name in ("train.main", "train.prepare"):
        importlib.import_module(name)
    asked = _serve()
    if asked is not None:
        main = importlib.import_module(asked[0]).main
        sys.argv = [asked[0], *asked[1]]
        cli.run_program(lambda: main(asked[1]))


if __name__ == "__main__":
    _main()
