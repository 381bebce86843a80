"""What one GPU would run for a training step, on a machine without one: `python -m benchmarks.gpu_compiled`.

Compiles loss and gradient of GPT-2-small shape (16 x 1024 tokens, vocabulary 50257; MoM: an anchor, a chunk of 10 steps
over 10 + 10 modules, an anchor, routers of width 256) and reads the program: temporaries, products, and arrays of a
pool's size that are made within its loops. Prints one JSON line, and a summary to the standard error. Needs JAX's
plugin for CUDA, which may be in a folder of PYTHONPATH; cuDNN's attention also needs cuDNN (`nvidia-cudnn-cu13`).

`ideal_flops`: three times the forward pass of the active parameters, every choice a real module, attention by its
kernel's own FLOPs or, where there is none, the full square. `ratio` is null where something could not be counted, and
where the backward pass computes again what is in no ideal (`--remat none` does not). Temporaries are indicative: on a
card XLA tunes some choices by trying them.
"""

import argparse
import dataclasses
import json
import re
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks.measuring import reference
from benchmarks.step import REMATS
from mom_jax import ModelConfig
from mom_jax.analysis import cost, hlo
from mom_jax.generation import programs
from mom_jax.model import with_parameters
from mom_jax.sharding import make_mesh
from train.cli import run_program
from train.planning.gpu import GPUS
from train.planning.topology import building, devices_of, prepare_environment
from train.steps.state import abstract_params

SIZE = dataclasses.replace(reference.GPT2_SMALL, batch=16, length=1024)


def compile_gradient(config: ModelConfig, kind: str) -> Any:
    """The compiled loss and gradient for one GPU."""
    mesh = make_mesh(None, devices_of(f"{kind}:1"))
    whole = NamedSharding(mesh, PartitionSpec())

    def placed(leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole)

    params = jax.tree.map(placed, abstract_params(config))
    batch = {"tokens": placed(jax.ShapeDtypeStruct((SIZE.batch, SIZE.length), jnp.int32))}
    with building(mesh) as platforms:
        lowered = reference.loss_and_gradients(config).trace(params, batch).lower(lowering_platforms=platforms)
    return lowered.compile()


def measure(config: ModelConfig, kind: str) -> dict[str, Any]:
    """Everything that is printed."""
    start = time.process_time()
    compiled = compile_gradient(config, kind)
    seconds, text = time.process_time() - start, compiled.as_text()
    counted = hlo.count(text)
    parts = cost.forward_flops_by_part(config, SIZE.length, causal=False)
    ideal = {name: 3 * SIZE.batch * SIZE.length * flops for name, flops in parts.items()}
    if attention := sum(
        call.flops or 0 for call in counted.custom_calls if re.search("fmha|mha_", f"{call.target} {call.name}")
    ):
        ideal["scores"] = float(attention)
    flops, needed = counted.flops + counted.kernel_flops, sum(ideal.values())
    complete = not counted.unknown_loops and not counted.unknown_kernels and config.remat == "none"
    # A pool's smallest stack of matrices: anything within the loops that is as large is the pool's.
    smallest = config.num_attn_modules * config.d_model**2
    pool_sized = [
        f"{opcode} {shape} {name}"
        for opcode, shape, name in hlo.large_in_loops(text, smallest)
        if shape.split("[")[1].startswith(f"{config.num_attn_modules},{config.d_model},")
        or shape.split("[")[1].startswith(f"{config.num_attn_modules},{config.inner_width},")
    ]
    return {
        "kind": GPUS[kind].kind,
        "dtype": config.dtype,
        "top_k": None if config.kind("ffn") == "ordered" else config.top_k,
        "dispatch": config.dispatch,
        "attention": config.attention_kernel,
        "remat": config.remat,
        "temp_bytes": compiled.memory_analysis().temp_size_in_bytes,
        "flops": flops,
        "ideal_flops": needed,
        "ideal_flops_by_part": ideal,
        "ratio": flops / needed if complete else None,
        "unknown_loops": counted.unknown_loops,
        "unknown_kernels": sorted({f"{call.target}: {call.name}" for call in counted.unknown_kernels}),
        "pool_sized_in_loops": pool_sized,
        "calls": _calls(counted),
        "compile_cpu_seconds": round(seconds, 1),
    }


def measure_decoding(config: ModelConfig, kind: str, batch: int, slots: int = 256) -> dict[str, Any]:
    """What a step of decoding compiles to: loops and branches, for which a GPU waits for its host, and temporaries."""
    mesh = make_mesh(None, devices_of(f"{kind}:1"))
    whole = NamedSharding(mesh, PartitionSpec())
    config = config.for_inference()

    def step(params: Any, tokens: jax.Array) -> Any:
        prepared = programs.prepare(params, config=config)
        cache = with_parameters(config, params).init_cache(batch, slots)
        cache = dataclasses.replace(cache, length=jnp.zeros((), jnp.int32))
        return prepared, cache

    with building(mesh) as platforms:
        tokens = jax.ShapeDtypeStruct((batch,), jnp.int32)
        given = jax.eval_shape(step, abstract_params(config), tokens)
        key = jax.eval_shape(lambda: jax.random.key(0))
        active = jax.ShapeDtypeStruct((batch,), jnp.bool_)
        placed = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole),
            (*given, tokens, tokens, active, key),
        )
        compiled = programs.step.trace(*placed, config=config).lower(lowering_platforms=platforms).compile()
    text = compiled.as_text()
    return {
        "kind": GPUS[kind].kind,
        "dtype": config.dtype,
        "batch": batch,
        "loops": len(re.findall(r" while\(", text)),
        "branches": len(re.findall(r" conditional\(", text)),
        "weight_bytes": sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(given[0])),
        "temp_bytes": compiled.memory_analysis().temp_size_in_bytes,
    }


def _calls(counted: hlo.HloCost) -> dict[str, int]:
    """How often each kind of call with products runs."""
    result: dict[str, int] = {}
    for call in counted.custom_calls:
        if call.flops is not None:
            name = call.name.split("/")[-1] if "fmha" in call.target else call.target
            if kernel := re.search(r"grouped_product_transposed|grouped_product|grouped_gradient|mha_\w+", call.name):
                name = kernel[0]
            result[name] = result.get(name, 0) + call.count
    return dict(sorted(result.items()))


def summary(result: dict[str, Any]) -> str:
    """The result in a few lines."""
    ratio = "unknown" if result["ratio"] is None else f"{result['ratio']:.3f}"
    model = "vanilla" if result["top_k"] is None else f"K = {result['top_k']}"
    lines = [
        f"{result['kind']}, {result['dtype']}, {model}, {result['dispatch']}, {result['attention']}, "
        f"remat {result['remat']}: compiled in {result['compile_cpu_seconds']} s of CPU",
        f"{result['flops'] / 1e12:.2f} TFLOP a step, ideal {result['ideal_flops'] / 1e12:.2f}: ratio {ratio}",
        f"{result['temp_bytes'] / 2**30:.2f} GiB of temporaries",
    ]
    lines += [f"not counted: {name}" for name in (*result["unknown_loops"], *result["unknown_kernels"])]
    lines += [f"in a loop: {name}" for name in result["pool_sized_in_loops"]]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_compiled", description=(__doc__ or "").split("\n")[0], allow_abbrev=False
    )
    parser.add_argument("--kind", choices=tuple(GPUS), default="h100")
    parser.add_argument("--vanilla", action="store_true", help="the plain transformer of the same depth")
    parser.add_argument("--top-k", type=int, default=1, help="K")
    parser.add_argument("--dispatch", default="auto", help="backend of the routed products")
    parser.add_argument("--attention", default="auto", help="backend of attention")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--remat", default="dots", choices=REMATS)
    parser.add_argument("--decoding", type=int, metavar="BATCH", help="a step of decoding instead, of so many rows")
    parser.add_argument("--json", action="store_true", help="the JSON line only, no summary")
    flags = parser.parse_args()
    options: dict[str, Any] = {"dispatch": flags.dispatch, "attention_kernel": flags.attention, "remat": flags.remat}
    config = reference.config(SIZE, top_k=flags.top_k, dtype=flags.dtype, **options)
    prepare_environment(f"{flags.kind}:1")
    config = config.vanilla() if flags.vanilla else config
    if flags.decoding:
        print(json.dumps(measure_decoding(config, flags.kind, flags.decoding)))
        return 0
    result = measure(config, flags.kind)
    if not flags.json:
        print(summary(result), file=sys.stderr)
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    run_program(main)
