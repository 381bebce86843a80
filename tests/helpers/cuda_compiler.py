"""JAX's plugin for CUDA, for tests that compile for GPUs: in the folder that MOM_CUDA names (`make test-slow` does).

In another way: `pip install --no-deps --target FOLDER jax-cuda13-plugin==VERSION jax-cuda13-pjrt==VERSION`
"""

import os
from pathlib import Path

import pytest
from programs import optimised

ROOT = Path(__file__).parents[2]
FOLDER = os.environ.get("MOM_CUDA")
needs_cuda_compiler = pytest.mark.skipif(not FOLDER, reason="MOM_CUDA, a folder with JAX's plugin for CUDA, is not set")


def environment():
    """For a process that compiles for GPUs."""
    path = os.pathsep.join(filter(None, (str(ROOT), FOLDER, os.environ.get("PYTHONPATH"))))
    return optimised({**os.environ, "PYTHONPATH": path})
