"""Three ways to go on from a vanilla transformer.

`python -m benchmarks.initialisation [--seeds 3] [--top-k 1,2] [--ways ...]`.

The quickstart's phase 1 is trained once. From its last checkpoint go on, with the same batches:

vanilla     the same vanilla transformer
paper       a MoM with new routers, free to choose from the first step
preserving  a MoM that starts as the vanilla one, its preference annealed away over half of the steps

Prints one JSON line for each K, way and seed: the validation loss at the end, nats per token, and the share of choices
that are another module than step h's own module h. The seed is that of new parameters and of the order of the batches.
"""

import argparse
import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console

from configs.quickstart import get_config
from mom_jax.interop.phases import preserving
from train.config import Config, Phase
from train.reporting import metrics
from train.training.loop import train

WAYS = ("vanilla", "paper", "preserving")


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.initialisation", description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--top-k", default="1,2", help="modules per step, with commas between")
    parser.add_argument("--ways", default=",".join(WAYS), help="which, with commas between")
    parser.add_argument("--steps", type=int, help="of each phase; by default the quickstart's")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        config = get_config()
        if flags.steps is not None:
            optim = dataclasses.replace(config.phases[0].optim, warmup_steps=min(50, flags.steps))
            rows = (dataclasses.replace(row, steps=flags.steps, optim=optim) for row in config.phases)
            config = dataclasses.replace(config, phases=tuple(rows), final_batches=min(48, flags.steps))
        first = dataclasses.replace(config, phases=config.phases[:1], run=f"{folder}/pretrain")
        train(first, console=Console(quiet=True))
        for top_k in map(int, flags.top_k.split(",")):
            for seed in range(flags.seeds):
                for way in flags.ways.split(","):
                    if way == "vanilla" and top_k != int(flags.top_k.split(",")[0]):
                        continue  # has no K
                    run = Path(folder) / f"{way}-{top_k}-{seed}"
                    train(_second(config, run, way, top_k, seed, first.run), console=Console(quiet=True))
                    print(json.dumps({"top_k": top_k, "way": way, "seed": seed, **_result(run)}), flush=True)


def _second(config: Config, run: Path, way: str, top_k: int, seed: int, source: str) -> Config:
    row = config.phases[1]
    optim = row.optim
    if way == "vanilla":
        optim = dataclasses.replace(optim, router_multiplier=1.0)
    phase = Phase(row.name, row.steps, "vanilla" if way == "vanilla" else "model", source, optim)
    model = dataclasses.replace(config.model, top_k=top_k)
    if way == "preserving":
        model = preserving(model, anneal_steps=phase.steps // 2)
    data = dataclasses.replace(config.data, seed=seed + 1)  # not phase 1's order
    return dataclasses.replace(config, model=model, data=data, phases=(phase,), run=str(run), seed=seed)


def _result(run: Path) -> dict[str, Any]:
    [final] = [record for record in metrics.read(run / "metrics.jsonl") if record["kind"] == "final"]
    routers = final.get("routers", {})
    shares = {f"{side}_off_diagonal": summary["off_diagonal"] for side, summary in routers.items()}
    return {"loss": final["loss"], **shares}


if __name__ == "__main__":
    main()
