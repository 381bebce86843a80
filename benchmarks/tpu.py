"""What a TPU pod would compute for one training step, on a machine without a TPU: `python -m benchmarks.tpu`.

Compiles loss and gradient of the work of benchmarks/measuring/reference.py for every chip of a topology (data parallel,
a batch for each chip, which routes its own tokens; nothing is computed again), reads the matrix products out of the
compiled program, and compares them with what the active parameters need. Prints one JSON line, and a summary to the
standard error. Needs libtpu (`pip install 'jax[tpu]'`), which may be in a folder of PYTHONPATH.

FLOPs are those of matrix products, per device and step. `ideal`: three times the forward pass of the active parameters,
every choice a real module, and attention as the program does it: the kernel's own FLOPs, or the full square where there
is none. `most`: with what grouped kernels repeat at most, where modules share a tile of rows. `ratio` is null where
something in the program could not be counted. `bytes_accessed` is XLA's and counts a loop's body once.
"""

import argparse
import json
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from benchmarks.measuring import reference
from benchmarks.measuring.reference import FULL
from mom_jax.analysis import cost, hlo
from mom_jax.fields import ConfigError
from mom_jax.losses import finish
from mom_jax.platforms import building_for
from train.cli import run_program
from train.planning.tpu import devices_of, prepare_environment
from train.steps.state import abstract_params
from train.steps.sums import language_model_sums

DISPATCH, ATTENTION = "megablox", "splash"  # what `auto` is on a TPU
TOPOLOGY = "v5e:4x4"


def compile_gradient(config: Any, topology: str) -> tuple[Any, Any]:
    """(the compiled loss and gradient, the devices) for a data-parallel batch over the whole topology."""
    devices = devices_of(topology)
    mesh = Mesh(np.array(devices), ("data",))
    whole, split = PartitionSpec(), PartitionSpec("data")

    def local(params: Any, tokens: jax.Array) -> jax.Array:
        sums = jax.lax.psum(language_model_sums(params, {"tokens": tokens}, config), "data")
        return finish(sums, config).total

    # A kernel's outputs do not say over which axes they vary, which the check would ask for.
    loss = jax.shard_map(local, mesh=mesh, in_specs=(whole, split), out_specs=whole, check_vma=False)

    def placed(leaf: Any, spec: PartitionSpec) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

    params = jax.tree.map(lambda leaf: placed(leaf, whole), abstract_params(config))
    tokens = placed(jax.ShapeDtypeStruct((FULL.batch * len(devices), FULL.length), jnp.int32), split)
    with building_for("tpu"):
        lowered = jax.jit(jax.value_and_grad(loss)).trace(params, tokens).lower(lowering_platforms=("tpu",))
    return lowered.compile(), devices


def measure(config: Any, topology: str) -> dict[str, Any]:
    """Everything that is printed."""
    start = time.process_time()
    compiled, devices = compile_gradient(config, topology)
    seconds = time.process_time() - start
    counted, memory = hlo.count(compiled.as_text()), compiled.memory_analysis()
    kernels = [call for call in counted.custom_calls if call.target == "tpu_custom_call"]
    parts = cost.forward_flops_by_part(config, FULL.length, causal=False)
    ideal = {name: 3 * FULL.batch * FULL.length * flops for name, flops in parts.items()}
    attention = sum(call.flops or 0 for call in kernels if "splash" in call.name)
    ideal["scores"] = float(attention) or ideal["scores"]
    flops, needed = counted.flops + counted.kernel_flops, sum(ideal.values())
    most = counted.flops + counted.most_kernel_flops
    complete = not counted.unknown_loops and not counted.unknown_kernels
    return {
        "topology": topology,
        "devices": len(devices),
        "device_kind": devices[0].device_kind,
        "dtype": config.dtype,
        "top_k": config.top_k,
        "dispatch": config.dispatch,
        "attention": config.attention_kernel,
        "flops": flops,
        "kernel_flops": counted.kernel_flops,
        "ideal_flops": needed,
        "ideal_flops_by_part": ideal,
        "ratio": flops / needed if complete else None,
        "most_ratio": most / needed if complete else None,
        "unknown_loops": counted.unknown_loops,
        "unknown_kernels": sorted({call.name for call in counted.unknown_kernels}),
        "bytes_accessed": compiled.cost_analysis()["bytes accessed"],
        "temp_bytes": memory.temp_size_in_bytes,
        "compile_cpu_seconds": round(seconds, 1),
        "kernels": [
            {
                "name": call.name,
                "operands": call.operands,
                "results": call.results,
                "count": call.count,
                "flops": call.flops,
            }
            for call in kernels
        ],
    }


def summary(result: dict[str, Any]) -> str:
    """The result in a few lines."""
    ratio = "unknown" if result["ratio"] is None else f"{result['ratio']:.3f}"
    flops, ideal = result["flops"] / 1e9, result["ideal_flops"] / 1e9
    lines = [
        f"{result['devices']} x {result['device_kind']}, {result['dtype']}, K = {result['top_k']}, "
        f"{result['dispatch']}, {result['attention']}: compiled in {result['compile_cpu_seconds']} s of CPU",
        f"{flops:.1f} GFLOP per device and step, ideal {ideal:.1f}: ratio {ratio}",
        f"{result['temp_bytes'] / 2**20:.0f} MiB of temporaries",
    ]
    lines += [f"not counted: {name}" for name in (*result["unknown_loops"], *result["unknown_kernels"])]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tpu", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--topology", default=TOPOLOGY, help="such as v5e:4x4, v4:2x2x4, v6e:8x8")
    parser.add_argument("--top-k", type=int, default=1, help="K")
    parser.add_argument("--dispatch", default=DISPATCH, help="backend of the routed products; auto is %(default)s")
    parser.add_argument("--attention", default=ATTENTION, help="backend of attention; auto is %(default)s")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--json", action="store_true", help="the JSON line only, no summary")
    arguments = parser.parse_args()
    prepare_environment()
    # `auto` asks for the platform, which is the CPU here.
    dispatch = DISPATCH if arguments.dispatch == "auto" else arguments.dispatch
    attention = ATTENTION if arguments.attention == "auto" else arguments.attention
    try:
        config = reference.config(
            top_k=arguments.top_k,
            dtype=arguments.dtype,
            dispatch=dispatch,
            attention_kernel=attention,
            remat="none",  # what is computed again would be in no ideal
        )
    except ConfigError as error:
        parser.error(str(error))
    result = measure(config, arguments.topology)
    if not arguments.json:
        print(summary(result), file=sys.stderr)
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    run_program(main)
