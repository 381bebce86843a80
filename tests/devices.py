"""Functions of tests in a process of their own, which has eight simulated devices: this one has a single device."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

from tpu_compiler import ROOT, environment


def on_eight(function, *arguments, for_tpu=False):
    """function(*arguments) there; arguments and result are what JSON can say. The function is a module's.

    for_tpu: whether it compiles for TPUs, for which libtpu is needed.
    """
    own = environment() if for_tpu else os.environ
    folders = ROOT, ROOT / "tests", Path(sys.modules[function.__module__].__file__).parent
    path = os.pathsep.join(filter(None, (*map(str, folders), own.get("PYTHONPATH"))))
    command = [sys.executable, "-W", "error", __file__, function.__module__, function.__name__, json.dumps(arguments)]
    run = subprocess.run(command, env={**own, "PYTHONPATH": path}, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-6000:]
    return json.loads(run.stdout.splitlines()[-1])


if __name__ == "__main__":
    import conftest  # noqa: F401  the settings of all tests
    import jax

    jax.config.update("jax_num_cpu_devices", 8)
    module, name, given = sys.argv[1:]
    print(json.dumps(getattr(importlib.import_module(module), name)(*json.loads(given))))
