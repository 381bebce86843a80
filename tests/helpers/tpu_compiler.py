"""libtpu for tests that compile for TPUs: installed, or in the folder that MOM_LIBTPU names (`make test-slow` does).

In another way: `pip install --no-deps --target FOLDER libtpu==VERSION`
"""

import importlib.util
import os
from pathlib import Path

import pytest
from programs import optimised

ROOT = Path(__file__).parents[2]
FOLDER = os.environ.get("MOM_LIBTPU")
INSTALLED = importlib.util.find_spec("libtpu") is not None
needs_libtpu = pytest.mark.skipif(not FOLDER and not INSTALLED, reason="no libtpu, and MOM_LIBTPU is not set")


def environment():
    """For a process that compiles for TPUs."""
    path = os.pathsep.join(filter(None, (str(ROOT), FOLDER, os.environ.get("PYTHONPATH"))))
    return optimised({**os.environ, "PYTHONPATH": path})
