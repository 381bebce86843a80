"""Functions of tests in a process of their own, which has eight simulated devices: this one has a single device."""

import atexit
import importlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tpu_compiler import ROOT, environment


class Server:
    """A process that answers one call after the other, since starting one takes seconds. It ends with an exception."""

    def __init__(self, for_tpu):
        own = environment() if for_tpu else os.environ
        places = str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "helpers"), own.get("PYTHONPATH")
        path = os.pathsep.join(filter(None, places))
        command = [sys.executable, "-W", "error", __file__]
        self.errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115  closed in `end`
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.errors, "text": True}
        self.process = subprocess.Popen(command, env={**own, "PYTHONPATH": path}, **pipes)

    def call(self, *request):
        print(json.dumps(request), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            self.process.wait()
            self.errors.seek(0)
            raise AssertionError(self.errors.read()[-6000:])
        return json.loads(answer)

    def end(self):
        self.process.kill()
        self.process.communicate()
        self.errors.close()


RUNNING = {}  # one at most, by whether it compiles for TPUs


def end():
    while RUNNING:
        RUNNING.popitem()[1].end()


atexit.register(end)


def on_eight(function, *arguments, for_tpu=False):
    """function(*arguments) there; arguments and result are what JSON can say. The function is a module's.

    for_tpu: whether it compiles for TPUs, for which libtpu is needed.
    """
    if for_tpu not in RUNNING or RUNNING[for_tpu].process.poll() is not None:
        end()
        RUNNING[for_tpu] = Server(for_tpu)
    folder = str(Path(sys.modules[function.__module__].__file__).parent)
    return RUNNING[for_tpu].call(folder, function.__module__, function.__name__, arguments)


def serve():
    """Answers calls, a line each, until there are no more. What else would be printed goes to stderr."""
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        for line in sys.stdin:
            folder, module, name, arguments = json.loads(line)
            if folder not in sys.path:
                sys.path.append(folder)
            answer = getattr(importlib.import_module(module), name)(*arguments)
            jax.clear_caches()
            print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    import conftest  # noqa: F401  the settings of all tests
    import jax

    jax.config.update("jax_num_cpu_devices", 8)
    serve()
