"""Healthy and broken runs: what the signs of failure are measured on.

`python -m benchmarks.signs [--ways healthy,no_balance,...] [--steps 120] [--folder FOLDER]`.

Phase 1 of configs/quickstart_paper.py is trained once. From its last checkpoint go on, with the same batches, healthy
MoMs and others that are built to fail (`WAYS`). With a folder the runs stay there, and those that are finished are not
trained again.

Prints one JSON line for each way: the signs that were said, and the least and the most that each figure was when it was
judged.
"""

import argparse
import contextlib
import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from configs.quickstart_paper import get_config
from mom_jax.analysis.signs import History, SignsConfig, findings
from mom_jax.fields import require
from train.checkpoints.models import open_model, write_run
from train.checkpoints.run_config import read_config
from train.config import Config
from train.reporting import metrics
from train.training.loop import train

# A prior on the logits of four modules and SKIP, at each of four steps.
FAVOURED = ((8.0, 8.0, 0.0, 0.0, 0.0),) * 4

# By name: what differs from that configuration; fields of the phase's optimizer begin with `optim.`.
WAYS: dict[str, dict[str, Any]] = {
    "healthy": {},
    "healthy_k1": {"top_k": 1},
    "steps_apart": {"attention.preference": 2.0, "ffn.preference": 2.0},
    "no_balance": {"balance.weight": 0.0},
    "restless": {"optim.schedule": "constant", "optim.router_multiplier": 30.0},
    "heavy_balance": {"balance.weight": 1.0},
    "huge_balance": {"balance.weight": 100.0},
    "still_routers": {"optim.router_multiplier": 0.0},
    "renormalised_k1": {"top_k": 1, "router.weights": "renormalised"},
    "renormalised_k1_no_balance": {"top_k": 1, "router.weights": "renormalised", "balance.weight": 0.0},
    "skipping": {"balance.weight": 0.0, "attention.skip_preference": 4.0, "ffn.skip_preference": 4.0},
    "favoured": {"balance.weight": 0.0, "attention.prior": FAVOURED, "ffn.prior": FAVOURED},
    "by_step_alone": {"attention.preference": 30.0, "ffn.preference": 30.0},
    "fast": {"optim.learning_rate": 0.1},
    "unsteady": {"optim.learning_rate": 0.02, "optim.clip_norm": 100.0, "optim.schedule": "constant"},
    "alike": {"optim.freeze": ("chunks/*/attention/*", "chunks/*/ffn/*")},  # from modules that are one and the same
}


def changed(value: Any, name: str, new: Any) -> Any:
    """The dataclass `value` with another field `name`, a path with dots."""
    first, _, rest = name.partition(".")
    return dataclasses.replace(value, **{first: changed(getattr(value, first), rest, new) if rest else new})


def experiment(steps: int) -> Config:
    """The quickstart with `steps` steps a phase, of half of its batch, and an evaluation each sixth of them."""
    config, every = get_config(), max(1, steps // 6)
    phases = tuple(changed(dataclasses.replace(row, steps=steps), "optim.warmup_steps", every) for row in config.phases)
    fields = {"data.batch_size": 8, "data.validation_batches": 8, "final_batches": 16, "evaluate_every": every}
    # Judged as early as the runs are short; the limits are the defaults.
    fields |= {"signs.warmup": 2 * every, "signs.window": every, "analysis.every": every}
    for name, new in fields.items():
        config = changed(config, name, new)
    return dataclasses.replace(config, phases=phases)


def broken(config: Config, way: str, source: str, run: Path) -> Config:
    """Phase 2 alone, from the run `source`, in one of `WAYS`."""
    [_, phase] = config.phases
    model, phase = config.model, dataclasses.replace(phase, init_from=source)
    for name, new in WAYS[way].items():
        if name.startswith("optim."):
            phase = changed(phase, name, new)
        else:
            model = changed(model, name, new)
    return dataclasses.replace(config, model=model, phases=(phase,), run=str(run))


def write_alike(source: str, run: Path) -> None:
    """The run `source` with the first of its modules in the place of all."""
    model = open_model(source, field="source")
    pools = jax.tree.map(lambda leaf: np.repeat(leaf[:1], len(leaf), 0), model.params["chunks"])
    assert model.tokenizer is not None
    write_run(run, "pretrain", model.config, {**model.params, "chunks": pools}, model.tokenizer)


def figures(run: Path, phase: str, limits: SignsConfig) -> dict[str, Any]:
    """Of what is in a run's log: the signs, and the least and the most that each figure was at a judgement."""
    config = read_config(run, "run")
    model = config.model_of(phase)
    numbers = {"sequences": config.data.batch_size, "steps": config.phases[0].steps}
    history = History(model, limits, **numbers)
    records = metrics.read(run / metrics.FILE)
    for record in records:
        history.add(record)
    history.close()
    ranges: dict[str, dict[str, list[float]]] = {}
    for point in history.points:
        for side, found in point.figures.items():
            own = ranges.setdefault(side or "model", {})
            for name, value in found.items():
                low, high = own.get(name, (value, value))
                own[name] = [float(f"{number:.3g}") for number in (min(low, value), max(high, value))]
    said = [(step, f.sign, f.side) for step, f in findings(records, model, limits, **numbers)]
    return {"signs": said, **ranges}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.signs", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--ways", default=",".join(WAYS), help="which, with commas between")
    parser.add_argument("--steps", type=int, default=120, help="of each phase")
    parser.add_argument("--folder", help="for the runs, which stay there")
    flags = parser.parse_args(argv)
    ways = flags.ways.split(",")
    for way in ways:
        require(way in WAYS, "ways", way, f"must be of {', '.join(WAYS)}")
    with contextlib.ExitStack() as stack:
        folder = Path(flags.folder or stack.enter_context(tempfile.TemporaryDirectory()))
        config = experiment(flags.steps)
        first = dataclasses.replace(config, phases=config.phases[:1], run=str(folder / "pretrain"))
        train(first, console=Console(quiet=True))
        for way in ways:
            source = first.run
            if way == "alike":
                source = str(folder / "alike_source")
                if not Path(source).exists():
                    write_alike(first.run, Path(source))
            run = folder / way
            train(broken(config, way, source, run), console=Console(quiet=True))
            print(json.dumps({"way": way, **figures(run, config.phases[1].name, config.signs)}), flush=True)


if __name__ == "__main__":
    main()
