"""GPT-2s of their real shapes, with random weights: memory, exactness, and the start of phase 2."""

import dataclasses
import json
import struct
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from programs import ROOT, environment
from safetensors import safe_open
from small_gpt2 import write_vocabulary

from mom_jax.interop.gpt2 import config_from_gpt2, config_to_gpt2, params_to_gpt2
from mom_jax.model import with_parameters
from train.checkpoints.models import open_model
from train.steps.state import abstract_params

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not tell a process's memory"),
]


def write_gpt2(folder, **options):
    """A folder as Hugging Face's, of the given shape; returns the bytes of its weights. One array at a time: other
    tests run beside this one, and the library for safetensors wants them all."""
    write_vocabulary(folder, ["def the model of all models"], 300)
    config = config_from_gpt2({"model_type": "gpt2", "vocab_size": 50257, "n_positions": 1024} | options)
    nothing = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), abstract_params(config))
    shapes = {name: array.shape for name, array in params_to_gpt2(nothing, config).items()}
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 4 * int(np.prod(shape))
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    rng = np.random.default_rng(0)
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for shape in shapes.values():
            file.write(rng.standard_normal(shape, np.float32) * np.float32(0.02))
    (folder / "config.json").write_text(json.dumps(config_to_gpt2(config)))
    return end


# The most memory that a process has had, which it alone can tell: its parent hands down what it had itself.
PROGRAM = """
import sys
from train import convert
assert convert.main(sys.argv[1:]) == 0
[line] = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(1024 * int(line.split()[1]))
"""


def convert(source, target, *flags):
    """Runs the program; returns the most memory that it had, in bytes."""
    command = [sys.executable, "-c", PROGRAM, "--input", source, "--output", target, *flags]
    done = subprocess.run(
        list(map(str, command)), cwd=ROOT, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout.splitlines()[-1])


def test_xl_in_and_out_in_the_memory_of_one_model(tmp_path):
    size = write_gpt2(tmp_path / "xl", n_embd=1600, n_head=25, n_layer=16)  # a third of XL's layers
    peaks = {
        "read": convert(tmp_path / "xl", tmp_path / "run", "--to", "vanilla"),
        "written": convert(tmp_path / "run", tmp_path / "back", "--to", "huggingface"),
    }
    print({name: peak / size for name, peak in peaks.items()})
    # Beside the model: the program itself, 0.3 GB, and what orbax has in hand while it writes, at most 0.7 GB whatever
    # the size. A copy of the largest array would be 0.7 GB more, one of the model 2.3 GB.
    assert max(peaks.values()) < size + 1.3e9, peaks
    files = (tmp_path / folder / "model.safetensors" for folder in ("xl", "back"))
    one, other = (safe_open(file, framework="np", backend="pread") for file in files)
    assert sorted(one.keys()) == sorted(other.keys())
    for name in one.keys():  # noqa: SIM118
        np.testing.assert_array_equal(one.get_tensor(name), other.get_tensor(name), err_msg=name)


def test_the_recipe_for_gpt2_starts_as_gpt2(tmp_path):
    size = write_gpt2(tmp_path / "gpt2", n_embd=768, n_head=12, n_layer=12)
    peak = convert(
        tmp_path / "gpt2", tmp_path / "mom", "--to", "mom", "--config", ROOT / "configs" / "mom_gpt2_small.py"
    )
    # The program itself, without a model, takes up to 0.6 GB, in which it compiles the routers' initialisation.
    assert peak < 1.3 * size + 7e8
    ids = np.random.default_rng(1).integers(0, 50257, (1, 48)).astype(np.int32)
    logits = []
    for folder in ("gpt2", "mom"):
        model = open_model(tmp_path / folder, field="path")
        config = dataclasses.replace(model.config, dtype="float32")  # the recipe computes in bfloat16
        logits.append(np.asarray(with_parameters(config, model.params)(ids).logits))
    assert (config.num_steps, config.kind("ffn")) == (8, "routed")
    np.testing.assert_allclose(*logits, rtol=0, atol=1e-3)
