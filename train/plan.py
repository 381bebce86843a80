"""What a run needs on a pod, before one is paid for: `python -m train.plan --config FILE --topology v5e:4x4 [...]`.

Compiles the real train step for TPUs or GPUs on a machine without any, and reads memory, products and communication out
of the program. `--search` ranks all meshes by arithmetic and compiles the best. Exit code 3: nothing tried fits.
"""

import dataclasses
import json
import signal
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from mom_jax.fields import ConfigError, require
from train.cli import Parser, run_program
from train.config import Config
from train.parse import parse_config


def compilable(config: Config, topology: str) -> tuple[Config, str]:
    """The configuration with an attention that can be compiled here, and what to say about it."""
    from mom_jax import attention
    from train.planning import gpu

    model = config.model
    if model.attention_kernel != "auto" or not gpu.is_gpu(topology) or gpu.has_cudnn():
        return config, ""
    kernel: Any = "triton" if attention.refusal("triton", model, config.data.length) is None else "blocked"
    changed = dataclasses.replace(model, attention_kernel=kernel)
    note = f"cuDNN (nvidia-cudnn-cu13) is not installed: planned with attention_kernel={kernel!r}, which is slower"
    return dataclasses.replace(config, model=changed), note


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser("python -m train.plan", description=__doc__, add_help=False, allow_abbrev=False)
    parser.add_argument("--topology", required=True, metavar="KIND:SHAPE", help="such as v5e:16x16, h100:8 or h100:8x4")
    parser.add_argument("--phase", metavar="NAME", help="the phase to plan; default: the last")
    parser.add_argument("--search", action="store_true", help="rank all meshes, and compile the best")
    parser.add_argument("--compile", type=int, default=5, metavar="N", help="how many of a search; default: 5")
    parser.add_argument("--json", action="store_true", help="one JSON object on the standard output")
    own, config = parse_config(parser, arguments)

    from mom_jax.analysis.chips import chip
    from train.data.prepared import expected_vocabulary
    from train.planning import advice
    from train.planning.program import compile_program
    from train.planning.roofline import ASSUMPTIONS, estimate
    from train.planning.search import by_arithmetic, candidates
    from train.planning.topology import devices_of, prepare_environment

    if config.model.vocab_size == 0:
        config = config.with_vocabulary(expected_vocabulary(config.data))
    names = [phase.name for phase in config.phases]
    name = names[-1] if own.phase is None else own.phase
    require(name in names, "phase", name, f"must be one of {names}")
    require(own.compile >= 1, "compile", own.compile, "must be at least 1")
    phase = config.phases[names.index(name)]
    prepare_environment(own.topology)
    config, note = compilable(config, own.topology)
    devices = devices_of(own.topology)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # libtpu would print a trace of its own
    device = chip(devices[0].device_kind)
    if device is None:
        raise ConfigError(f"topology={own.topology!r}: there are no figures for the chip {devices[0].device_kind!r}")
    console = Console(stderr=own.json, highlight=False, width=None if sys.stdout.isatty() else 120)

    if note:
        console.print(note)
    model, ranked = config.model_of(name), []
    if own.search:
        ranked = candidates(config, phase, model, len(devices), device)
        allowed = f"no mesh of {len(devices)} chips divides the model and the batch of {config.data.batch_size}"
        require(bool(ranked), "topology", own.topology, allowed)
        chosen = ranked[: own.compile]
        console.print(f"{len(ranked)} meshes are possible; compiling {len(chosen)}")
    else:
        chosen = [by_arithmetic(config, phase, model, config.mesh, len(devices), device)]
    records = []
    for guess in chosen:
        console.print(
            f"by arithmetic {guess.seconds:.3g} s a step and {guess.memory / 2**30:.1f} GiB a chip; compiling the step "
            f"for {len(devices)} {device.name}, which takes minutes where the model is large",
            soft_wrap=True,
        )
        program = compile_program(config, phase, guess.mesh, devices, device)
        bounds = estimate(config, phase, program)
        records.append(advice.record(config, phase, program, bounds))
        console.print(advice.table(config, phase, program, bounds))
    if own.search:
        # Those that fit, the fastest first.
        records.sort(key=lambda r: (not r["fits"], r["estimate"]["step_worst"] if r["estimate"] else 0))
        choice = advice.choice(records)
        console.print(f"best: {choice}", soft_wrap=True)
    console.print(f"Assumed: {ASSUMPTIONS}. Figures of the chip: {device.source}", soft_wrap=True)
    if own.json:
        result = {"topology": own.topology, "assumptions": ASSUMPTIONS, "plans": records}
        if own.search:
            result |= {"ranked": [dataclasses.asdict(c) for c in ranked], "choice": choice}
        print(json.dumps(result))
    return 0 if any(record["fits"] for record in records) else 3


if __name__ == "__main__":
    run_program(main)
