"""The loss of a run on its own held-out data, by the windows that training evaluates with."""

from collections.abc import Callable, Sequence
from typing import Any

from train.checkpoints.locate import check_tokenizer, find, tell_data
from train.data.prepared import prepare
from train.reporting.sentences import describe_exchange, describe_routing
from train.reporting.tables import markdown
from train.training.validation import exchange_test, validate


def evaluate(
    checkpoint: str, *, best: bool, limit: int, exchange: bool, notify: Callable[[str], None]
) -> tuple[dict[str, Any], str]:
    """(a record for JSON, the same in sentences) of a checkpoint of a run.

    best: of a phase take the step with the lowest validation loss, not the latest. limit: batches; 0 reads them all.
    exchange: also measure the loss with the routers' choices exchanged among tokens. Raises ConfigError where there is
    no checkpoint, or its data or tokenizer are not there any more.
    """
    found = find(checkpoint, field="checkpoint", best=best)
    meta = found.meta()
    model, data = meta.model, meta.config.data
    tell_data(found, data, notify)
    prepared = prepare(data, notify)
    check_tokenizer(prepared.tokenizer.fingerprint, meta, f"data.tokenizer={data.tokenizer!r}")
    params = found.params(model)
    evaluation = validate(params, model, prepared, data, step=meta.step, limit=limit)
    evaluation.check(f"{found}")
    record = {"checkpoint": str(found), "phase": meta.phase, "step": meta.step, **evaluation.record()}
    if exchange and evaluation.routers:
        record["exchanged"] = exchange_test(params, model, prepared, data, step=meta.step)
    lines = [f"{found}", f"validation loss {evaluation.loss:.4f} nats/token over {evaluation.tokens:,} tokens"]
    lines += [f"perplexity {evaluation.perplexity:.2f} per token"]
    lines += [describe_routing(side, summary, model.skip) for side, summary in evaluation.routers.items()]
    if "exchanged" in record:
        lines.append(describe_exchange(meta.phase, record["exchanged"]))
    return record, "\n".join(lines)


def table(records: Sequence[dict[str, Any]]) -> str:
    """A Markdown table, a row for each record."""
    rows = []
    for record in records:
        figures = (
            f"{record['step']:,}",
            f"{record['tokens']:,}",
            f"{record['loss']:.4f}",
            f"{record['perplexity']:.2f}",
        )
        rows.append((record["checkpoint"], record["phase"], *figures))
    return markdown(("checkpoint", "phase", "step", "tokens", "nats/token", "perplexity"), rows)
