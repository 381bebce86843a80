"""What logging the analysis costs a training run: `python -m benchmarks.analysis [--every 100] [--json]`.

The train steps of configs/quickstart_paper.py and analyses (train/analysis/watch.py), of both phases, in turn, so that
a change of the machine's speed meets both. Of each phase: `step` and `record`, median seconds; `first_step` and
`first_record`, with tracing and compiling; `records`, how many a phase logs; `quartiles`, of a record over a step,
round by round. `seconds`: of all records of the run, the first of each phase with its compiling. `share`: those over
all steps of the run, the first ones with their compiling too; evaluations, checkpoints and the report are left out of
the run's time. `share_compiled`: the same of compiled programs only, as in a long run.
"""

import dataclasses
import time
from typing import Any

import jax

from benchmarks.measuring import timing
from configs.quickstart_paper import get_config
from mom_jax.sharding import make_mesh
from train.analysis.watch import Watch
from train.config import Config, Phase
from train.data.pipeline import TrainingData
from train.data.prepared import Prepared, prepare
from train.steps.memory import keep_freed_memory
from train.steps.optimizer import make_optimizer
from train.steps.placement import place_share
from train.steps.train_step import jit_train_step
from train.training import initial_state


def measure(config: Config, rounds: int) -> dict[str, Any]:
    """The seconds of steps and records of all phases, and the shares."""
    prepared = prepare(config.data, timing.progress)
    config = config.with_vocabulary(prepared.tokenizer.vocab_size)
    phases = {phase.name: _phase(config, phase, prepared, rounds) for phase in config.phases}
    steps, records, first_steps, first_records = 0.0, 0.0, 0.0, 0.0
    for phase in config.phases:
        found = phases[phase.name]
        steps += phase.steps * found["step"]
        records += found["records"] * found["record"]
        first_steps += found["first_step"] - found["step"]
        first_records += found["first_record"] - found["record"]
    return {
        "every": config.analysis.every,
        "tokens": config.analysis.tokens,
        "seconds": records + first_records,
        "share": (records + first_records) / (steps + first_steps),
        "share_compiled": records / steps,
        "phases": phases,
        "rounds": rounds,
        **timing.machine(),
    }


def _phase(config: Config, phase: Phase, prepared: Prepared, rounds: int) -> dict[str, Any]:
    mesh, model = make_mesh(), config.model_of(phase.name)
    optimizer = make_optimizer(phase.optim, phase.steps)
    params = initial_state.fresh_params(model, config.seed, mesh)
    state = initial_state.first_state(params, model, optimizer, mesh)
    function = jit_train_step(model, optimizer, phase.optim.accumulation, config.seed, mesh)
    batches = TrainingData(prepared, config.data).batches(examples_seen=0)
    batch = {name: place_share(rows, mesh) for name, rows in next(batches).items()}
    batches.close()
    watch = Watch(config, phase, prepared, mesh)

    def step() -> None:
        nonlocal state
        state, report = function(state, batch)
        jax.block_until_ready((state, report))

    def record() -> None:
        watch.record(state.params, 1)

    def seconds(call: timing.Call) -> float:
        begin = time.perf_counter()
        call()
        return time.perf_counter() - begin

    timing.progress(f"{phase.name}: compiling")
    first = {"first_step": seconds(step), "first_record": seconds(record)}
    calls = {"step": step, "record": record}
    timing.warm_up(calls)
    timing.progress(f"{phase.name}: {rounds} rounds of {', '.join(calls)}")
    rows = timing.interleaved(calls, rounds)
    records = sum(watch.wanted(step) for step in range(1, phase.steps + 1))
    quartiles = timing.quartiles(timing.ratios(rows, "record", "step"))
    return {**timing.medians(rows), **first, "records": records, "quartiles": quartiles}


def main() -> None:
    parser = timing.parser("analysis", __doc__, rounds=15)
    parser.add_argument("--every", type=timing.positive, default=100, help="steps between analyses (100)")
    flags = parser.parse_args()
    keep_freed_memory()
    config = get_config()
    analysis = dataclasses.replace(config.analysis, every=flags.every)
    data = dataclasses.replace(config.data, batch_size=2) if flags.small else config.data
    config = dataclasses.replace(config, analysis=analysis, data=data)
    with timing.compiling_anew():
        timing.report(measure(config, flags.rounds), flags.json)


if __name__ == "__main__":
    main()
