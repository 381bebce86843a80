"""What watching the numbers costs: the train step with and without its guard.

    python -m benchmarks.reliability.watching                # steps of configs/quickstart_paper.py, both phases

In one process, in turn, each on a state of its own. The watched side does all that the loop does: it makes the guard
of each step, and looks at the verdict and the numbers of the step before while the step runs. `--small` is only to see
that it runs: its steps are so short that nothing else counts.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax

from benchmarks.measuring import timing
from configs.quickstart_paper import get_config
from mom_jax.sharding import make_mesh
from train.config import Config, Phase
from train.data.pipeline import TrainingData
from train.data.prepared import Prepared, prepare
from train.steps.memory import keep_freed_memory
from train.steps.optimizer import make_optimizer
from train.steps.placement import place_share
from train.steps.train_step import jit_train_step
from train.training import initial_state
from train.training.numbers.watcher import Watcher


def measure(
    config: Config, rounds: int, only: str | None = None, clock: Callable[[], float] = time.perf_counter
) -> dict[str, Any]:
    """Seconds of the steps of all phases, or of the one of this name, and what the guard adds."""
    prepared = prepare(config.data, timing.progress)
    config = config.with_vocabulary(prepared.tokenizer.vocab_size)
    rows = [phase for phase in config.phases if only in (None, phase.name)]
    phases = {phase.name: _phase(config, phase, prepared, rounds, clock) for phase in rows}
    return {"phases": phases, "spike": config.watch.spike, "rounds": rounds, **timing.machine()}


def _phase(config: Config, phase: Phase, prepared: Prepared, rounds: int, clock: Callable[[], float]) -> dict[str, Any]:
    mesh, model = make_mesh(), config.model_of(phase.name)
    optimizer = make_optimizer(phase.optim, phase.steps)
    batches = TrainingData(prepared, config.data).batches(examples_seen=0)
    batch = {name: place_share(rows, mesh) for name, rows in next(batches).items()}
    batches.close()
    function = jit_train_step(model, optimizer, phase.optim.accumulation, config.seed, mesh, watch=config.watch)

    def stepper(watched: bool) -> Callable[[], None]:
        params = initial_state.fresh_params(model, config.seed, mesh)
        state = initial_state.first_state(params, model, optimizer, mesh)
        watcher, step, before = Watcher(config.watch, mesh), 0, None

        def call() -> None:
            nonlocal state, step, before
            step += 1
            given = (watcher.guard(step),) if watched else ()
            state, report = function(state, batch, *given)
            if watched:
                watcher.dispatched(report.verdict)
                if before is not None:
                    watcher.see(step - 1, jax.device_get(before))
                before = report
            jax.block_until_ready((state, report))

        return call

    calls = {"plain": stepper(False), "watched": stepper(True)}
    timing.progress(f"{phase.name}: compiling")
    timing.warm_up(calls)
    timing.progress(f"{phase.name}: {rounds} rounds of {', '.join(calls)}")
    rows = timing.interleaved(calls, rounds, clock=clock)
    extra = [ratio - 1 for ratio in timing.ratios(rows, "watched", "plain")]
    overhead = statistics.median(extra)
    timing.progress(f"{phase.name}: {overhead:+.2%}, quartiles {timing.quartiles(extra)}, {timing.medians(rows)} s")
    return {**timing.medians(rows), "overhead": overhead, "quartiles": timing.quartiles(extra)}


def main() -> None:
    parser = timing.parser("reliability.watching", __doc__, rounds=41)
    parser.add_argument("--spike", default="skip", choices=("off", "log", "skip"), help="what spikes do (skip)")
    parser.add_argument("--phase", help="only the phase of this name")
    text = "count this process's work on all threads instead of time: for a machine that others use as well"
    parser.add_argument("--processor-time", action="store_true", help=text)
    flags = parser.parse_args()
    keep_freed_memory()
    config = get_config()
    watch = dataclasses.replace(config.watch, spike=flags.spike, window=16, loss_factor=100.0, gradient_factor=1e6)
    data = dataclasses.replace(config.data, batch_size=2) if flags.small else config.data
    config = dataclasses.replace(config, watch=watch, data=data)
    with timing.compiling_anew():
        clock = time.process_time if flags.processor_time else time.perf_counter
        timing.report(measure(config, flags.rounds, flags.phase, clock), flags.json)


if __name__ == "__main__":
    main()
