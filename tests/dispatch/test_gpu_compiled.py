"""The train step of GPT-2-small shape on an H100, compiled here: no more products than the active parameters need,
little more memory than a vanilla transformer, and nothing of a pool's size made within the scan's loops.

Attention is `triton`, which needs no cuDNN to be compiled.
"""

import functools
import json
import os
import subprocess
import sys

import pytest
from cuda_compiler import FOLDER, ROOT, environment, needs_cuda_compiler

COMMAND = [sys.executable, "-m", "benchmarks.gpu_compiled"]


@functools.cache
def measure(*arguments: str) -> dict:
    """What the benchmark prints; every product in it is counted."""
    command = [*COMMAND, "--json", "--attention", "triton", *arguments]
    run = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-4000:]
    result = json.loads(run.stdout)
    assert not result.get("unknown_loops")
    assert not result.get("unknown_kernels")
    return result


@pytest.mark.slow
@needs_cuda_compiler
@pytest.mark.parametrize(("top_k", "temporaries"), [(1, 1.5), pytest.param(3, 2.5, marks=pytest.mark.exhaustive)])
def test_memory_and_loops(top_k, temporaries):
    vanilla, mom = measure("--vanilla"), measure("--top-k", str(top_k))
    assert mom["temp_bytes"] <= temporaries * vanilla["temp_bytes"]
    assert mom["pool_sized_in_loops"] == []
    # Two matrices on each side at each of 10 steps; attention's forward pass once in each of 12 layers.
    for kernel in ("grouped_product", "grouped_product_transposed", "grouped_gradient"):
        assert mom["calls"][kernel] == 2 * 2 * 10
    assert mom["calls"]["mha_forward"] == mom["calls"]["mha_backward"] == 12


@pytest.mark.slow
@needs_cuda_compiler
def test_products():
    """Of one choice a token: a module then has few rows, of which more fill up tiles."""
    assert 1 <= measure("--top-k", "1", "--remat", "none")["ratio"] <= 1.1


@pytest.mark.slow
@needs_cuda_compiler
def test_every_module_for_every_token_is_seen_to_cost_more():
    """The same measurement of a backend that is dense on GPUs."""
    ragged = measure("--dispatch", "ragged", "--remat", "none")
    assert ragged["ratio"] > 2
    assert ragged["pool_sized_in_loops"] != []


@pytest.mark.slow
@needs_cuda_compiler
@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float32", marks=pytest.mark.exhaustive)])
def test_the_kernels_for_other_cards_compile(dtype):
    result = measure("--kind", "a100", "--dtype", dtype)
    assert result["kind"] == "NVIDIA A100-SXM4-80GB"
    assert result["calls"]["grouped_gradient"] == 40


@pytest.mark.slow
@needs_cuda_compiler
def test_decoding_waits_for_nobody():
    """No loop and no branch, which a GPU asks its host about; weights in bfloat16."""
    one, many = (measure("--decoding", batch, "--top-k", top_k) for batch, top_k in (("1", "1"), ("16", "3")))
    assert one["loops"] == one["branches"] == many["loops"] == many["branches"] == 0
    wide = measure("--decoding", "16", "--top-k", "3", "--dtype", "float32")
    assert many["weight_bytes"] < 0.51 * wide["weight_bytes"]


@pytest.mark.skipif(FOLDER is not None, reason="JAX's plugin for CUDA is there")
def test_without_the_plugin_it_says_so():
    hidden = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    run = subprocess.run(COMMAND, cwd=ROOT, env=hidden, capture_output=True, text=True)
    assert run.returncode == 2
    assert run.stderr.startswith("error: JAX's plugin for CUDA is not installed: pip install --no-deps --target FOLDER")
    assert len(run.stderr.splitlines()) == 1


@pytest.mark.slow
@needs_cuda_compiler
@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            ["--attention", "triton", "--dispatch", "mosaic", "--kind", "a100"],
            "error: dispatch='mosaic': needs an NVIDIA",
        ),
        (["--attention", "cudnn", "--dtype", "float32"], "error: attention_kernel='cudnn': takes bfloat16"),
    ],
)
def test_what_the_card_cannot_run_is_one_line(flags, said):
    run = subprocess.run([*COMMAND, *flags], cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert run.returncode == 2
    assert run.stderr.startswith(said)
    assert len(run.stderr.splitlines()) == 1
