"""Memory on one device, against the paper's -43 %: `python -m benchmarks.one_device [--json]`.

GPT-2 medium and large, and the paper's MoMs beside them, wide and deep, with batches of 8 x 1024 tokens. Training: the
whole step (AdamW, bfloat16) compiled for one TPU v5p, without one; needs libtpu (`pip install 'jax[tpu]'`), which may
be in a folder of PYTHONPATH.
Inference: the weights that decoding reads and a full cache of keys and values, from the shapes of the arrays.
"""

import argparse
import dataclasses
import json
import math
import sys
from typing import Any

import jax

from configs import paper
from mom_jax.analysis.chips import chip
from mom_jax.config import ModelConfig
from mom_jax.generation import programs
from mom_jax.model import with_parameters
from mom_jax.platforms import building_for
from mom_jax.sharding import MeshConfig
from train.cli import run_program
from train.config import Config
from train.planning.program import compile_program
from train.planning.tpu import devices_of, prepare_environment
from train.steps.state import abstract_params

MODELS = ("gpt2_medium", "paper_routing/medium_wide", "gpt2_large", "paper_routing/large", "paper_routing/large_deep")
BATCH, LENGTH = 8, 1024
TOPOLOGY = "v5p:2x2x1"  # of which one chip is used: one that has room for all of it


def training(config: Config) -> dict[str, int]:
    """Bytes of the last phase's step: state, temporaries, peak."""
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, batch_size=BATCH, length=LENGTH))
    [device, *_] = devices_of(TOPOLOGY)
    known = chip(device.device_kind)
    assert known is not None
    memory = compile_program(config, config.phases[-1], MeshConfig(data=1), [device], known).memory
    assert memory.activations is not None, "it does not fit"
    return {
        "state_bytes": memory.parameters + memory.optimizer,
        "temp_bytes": memory.activations,
        "peak_bytes": memory.peak,
    }


def inference(config: ModelConfig) -> dict[str, int]:
    """Bytes of what decoding reads: weights in the compute dtype, and the cache of full sequences."""
    with building_for("tpu"):
        weights = jax.eval_shape(lambda params: programs.prepare(params, config=config), abstract_params(config))
    cache = jax.eval_shape(
        lambda params: with_parameters(config, params).init_cache(BATCH, LENGTH), abstract_params(config)
    )
    return {"weight_bytes": _bytes(weights), "cache_bytes": _bytes(cache)}


def _bytes(tree: Any) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree) if hasattr(leaf, "dtype"))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.one_device", description=__doc__.split("\n")[0])
    parser.add_argument("--json", action="store_true", help="one JSON line on the standard output")
    flags = parser.parse_args(arguments)
    prepare_environment()
    rows: dict[str, dict[str, int]] = {}
    for name in MODELS:
        config = paper.config_of(name)
        rows[name] = training(config) | inference(config.model_of(config.phases[-1].name))
        rows[name]["inference_bytes"] = rows[name]["weight_bytes"] + rows[name]["cache_bytes"]
        plain = rows[f"gpt2_{paper.MODELS[name]}"]
        parts = (f"{key} {value / 2**30:.2f} GiB ({value / plain[key]:.2f})" for key, value in rows[name].items())
        print(f"{name}: {', '.join(parts)}", file=sys.stderr if flags.json else sys.stdout, flush=True)
    if flags.json:
        print(json.dumps({"batch": BATCH, "length": LENGTH, "jax": jax.__version__, "models": rows}))
    return 0


if __name__ == "__main__":
    run_program(main)
