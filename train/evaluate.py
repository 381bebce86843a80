"""Evaluates a checkpoint: `python -m train.evaluate --checkpoint RUN [--task perplexity]`."""

import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import Literal

import tyro

from train.cli import run_program


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Evaluate a checkpoint.

    Attributes:
        checkpoint: a run's folder, RUN/checkpoints/PHASE, or RUN/checkpoints/PHASE/STEP.
        best: of a phase take the step with the lowest validation loss, not the latest.
        limit: batches of held-out windows; 0 reads them all.
        exchange: also measure the loss with the routers' choices exchanged among tokens.
        json: print one JSON object instead of sentences.
    """

    checkpoint: str
    task: Literal["perplexity"] = "perplexity"
    best: bool = False
    limit: int = 0
    exchange: bool = False
    json: bool = False


def main(arguments: Sequence[str] | None = None) -> int:
    flags = tyro.cli(Arguments, args=arguments, prog="python -m train.evaluate", description=__doc__)

    from mom_jax.fields import require
    from train.checkpoint import check_tokenizer, find
    from train.data.prepared import prepare
    from train.evaluation import exchange_test, validate
    from train.loop import describe_exchange, describe_routing

    require(flags.limit >= 0, "limit", flags.limit, "must be at least 0")
    found = find(flags.checkpoint, field="checkpoint", best=flags.best)
    meta = found.meta()
    model, data = meta.model, meta.config.data
    prepared = prepare(data, lambda text: print(text, file=sys.stderr))
    check_tokenizer(prepared.tokenizer.fingerprint, meta, f"data.tokenizer={data.tokenizer!r}")
    params = found.params(model)
    evaluation = validate(params, model, prepared, data, step=meta.step, limit=flags.limit)
    record = {"checkpoint": str(found), "phase": meta.phase, "step": meta.step, **evaluation.record()}
    if flags.exchange and evaluation.routers:
        record["exchanged"] = exchange_test(params, model, prepared, data, step=meta.step)
    if flags.json:
        print(json.dumps(record))
        return 0
    print(f"{found}")
    print(f"validation loss {evaluation.loss:.4f} nats/token over {evaluation.tokens:,} tokens")
    print(f"perplexity {evaluation.perplexity:.2f} per token")
    for side, summary in evaluation.routers.items():
        print(describe_routing(side, summary, model.skip))
    if "exchanged" in record:
        print(describe_exchange(meta.phase, record["exchanged"]))
    return 0


if __name__ == "__main__":
    run_program(main)
