"""What keeping freed memory (train/steps/memory.py) does to the steps of configs/quickstart_paper.py.

`python -m benchmarks.freed_memory`.

The setting holds for a process, so each of a few turns is a process of its own, with and without, one after the other.
Prints one JSON line: the median seconds per step of both phases, and the ratio of with over without.
"""

import json
import statistics
import subprocess
import sys
import time

TURNS, WARM_UP, STEPS = 3, 2, 10


def measure(keep: bool) -> dict[str, float]:
    """Median seconds of a train step, by phase."""
    import jax
    import numpy as np

    from configs.quickstart_paper import get_config
    from mom_jax.sharding import make_mesh
    from train.steps import memory
    from train.steps.optimizer import make_optimizer
    from train.steps.train_step import jit_train_step
    from train.training import initial_state

    if keep:
        memory.keep_freed_memory()
    config, result = get_config(), {}
    config = config.with_vocabulary(config.data.vocab_size)
    shape = (config.data.batch_size, config.data.length)
    batch = {"tokens": np.random.default_rng(0).integers(0, config.model.vocab_size, shape, dtype=np.int32)}
    for phase in config.phases:
        model, optimizer = config.model_of(phase.name), make_optimizer(phase.optim, phase.steps)
        mesh = make_mesh()
        state = initial_state.first_state(initial_state.fresh_params(model, 0, mesh), model, optimizer, mesh)
        step = jit_train_step(model, optimizer, 1, 0, mesh)
        seconds = []
        for _ in range(WARM_UP + STEPS):
            start = time.perf_counter()
            state, report = step(state, batch)
            jax.block_until_ready((state, report))
            seconds.append(time.perf_counter() - start)
        result[phase.name] = statistics.median(seconds[WARM_UP:])
    return result


def main() -> None:
    if len(sys.argv) > 1:
        print(json.dumps(measure(sys.argv[1] == "with")))
        return
    turns: dict[str, list[dict[str, float]]] = {"without": [], "with": []}
    for _ in range(TURNS):
        for how, results in turns.items():
            command = [sys.executable, "-m", "benchmarks.freed_memory", how]
            results.append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout))
    medians = {
        how: {name: statistics.median(result[name] for result in results) for name in results[0]}
        for how, results in turns.items()
    }
    ratio = {name: medians["with"][name] / medians["without"][name] for name in medians["with"]}
    print(json.dumps({"seconds_per_step": medians, "ratio": ratio}))


if __name__ == "__main__":
    main()
