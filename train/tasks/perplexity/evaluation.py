"""Perplexity of checkpoints: on a run's own held-out windows, or of whole documents."""

import time
from collections.abc import Sequence
from typing import Any

from mom_jax.fields import require
from train.checkpoints.locate import find, tell_data
from train.cli import notify
from train.data.texts import documents_of
from train.tasks.output import Results
from train.tasks.perplexity import by_document, held_out
from train.tasks.perplexity.scores import Scorer
from train.tasks.scored_models import scored_models

REPORT_EVERY = 30.0  # seconds


def of_held_out(checkpoints: Sequence[str], *, best: bool, limit: int, exchange: bool) -> Results:
    """The loss of runs on what they hold out, as training reports it. limit: batches; 0 reads them all."""
    found = [
        held_out.evaluate(checkpoint, best=best, limit=limit, exchange=exchange, notify=notify)
        for checkpoint in checkpoints
    ]
    records = [record for record, _ in found]
    text = "\n".join(text for _, text in found)
    return Results("perplexity", records, held_out.table(records), text)


def of_documents(
    checkpoints: Sequence[str],
    config: by_document.PerplexityConfig,
    *,
    source: str | None,
    side: str,
    validation_fraction: float,
    limit: int,
    batch_size: int,
    tokenizer: str | None,
    best: bool,
) -> Results:
    """The perplexity of whole documents, each checkpoint with its own tokenizer.

    source: where the documents come from; None for each run's own held-out ones. side: `all` of the source's documents,
    or `validation`, those that a run with this `validation_fraction` holds out. limit: documents; 0 reads them all.
    """
    field = "data.validation_fraction"
    require(0 < validation_fraction < 1, field, validation_fraction, "must lie between 0 and 1")
    records, documents = [], []
    for scored in scored_models(checkpoints, tokenizer=tokenizer, best=best):
        checkpoint, model = scored.checkpoint, scored.model
        own, fraction = source, validation_fraction if side == "validation" else None
        reading: dict[str, Any] = {}
        if own is None:
            found = find(checkpoint, field="checkpoint", best=best)
            data = found.meta().config.data
            tell_data(found, data, notify)
            own, fraction = data.source, data.validation_fraction
            reading = {"on_bad": data.on_bad, "cache": data.cache}
        texts = documents_of(own, held_out=fraction, limit=limit, **reading)
        scorer = Scorer(model.config, model.params, batch_size)
        result = by_document.perplexity(scorer, scored.tokenizer, texts, config, progress=_Lines(checkpoint))
        facts = {"checkpoint": checkpoint, "description": model.description, "source": own}
        records.append(facts | {"side": "all" if fraction is None else "validation"} | result.record())
        documents += [{"checkpoint": checkpoint, **document.record()} for document in result.documents]
    table = by_document.table([(record["checkpoint"], record) for record in records])
    return Results("perplexity", records, table, table, documents)


class _Lines:
    """Tells every half a minute how many tokens have been scored."""

    def __init__(self, label: str) -> None:
        self._label, self._last = label, time.monotonic()

    def __call__(self, tokens: int) -> None:
        if time.monotonic() - self._last >= REPORT_EVERY:
            self._last = time.monotonic()
            notify(f"{self._label}: {tokens:,} tokens scored")
