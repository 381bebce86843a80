"""The reference model's training step on a TPU pod, compiled here: no more products than the active parameters need."""

import json
import os
import subprocess
import sys

import pytest
from tpu_compiler import INSTALLED, ROOT, environment, needs_libtpu

COMMAND = [sys.executable, "-m", "benchmarks.tpu"]


def measure(*arguments: str) -> dict:
    """What the benchmark prints."""
    command = [*COMMAND, "--json", *arguments]
    run = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-4000:]
    result = json.loads(run.stdout)
    # Else the ratio would say nothing.
    assert not result["unknown_loops"]
    assert not result["unknown_kernels"]
    return result


@pytest.mark.slow
@needs_libtpu
def test_the_default_backend_multiplies_by_the_chosen_modules_only():
    """With one choice a token, where rows that fill up a block weigh most."""
    result = measure("--top-k", "1")
    assert 1 <= result["ratio"] <= 1.1
    grouped = [kernel for kernel in result["kernels"] if "gmm" in kernel["name"]]
    # Two matrices on each side; each multiplies in the forward pass and for both of its gradients, at every step.
    assert sum(kernel["count"] for kernel in grouped) == 2 * 2 * 3 * 8
    assert sum(kernel["flops"] for kernel in grouped) == result["ideal_flops_by_part"]["modules"]


@pytest.mark.skipif(INSTALLED, reason="libtpu is installed")
def test_without_libtpu_it_says_so():
    hidden = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    run = subprocess.run(COMMAND, cwd=ROOT, env=hidden, capture_output=True, text=True)
    assert run.returncode == 2
    assert run.stderr.startswith("error: libtpu is not installed")
    assert len(run.stderr.splitlines()) == 1
