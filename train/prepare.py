"""Prepares data for training: `python -m train.prepare SOURCE [--tokenizer sentencepiece] [--vocab-size 8192] ...`.

Downloads what is remote (of Hugging Face: while it tokenizes), trains the tokenizer if it is to be trained, and
tokenizes with all cores into the cache that training reads. Interrupted, the same command goes on where it was; when
all is there, it does nothing. The flags must be those of the configuration's `data`: with --config FILE they are taken
from there.
"""

import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from train.cli import load_config, run_program
from train.config import DataConfig
from train.parse import parse_flags


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Flags of the program.

    Attributes:
        source: what to prepare, in the words of `data.source`; left out, the configuration's.
        config: a Python file with get_config(), whose `data` has the defaults of all other flags.
        tokenizer: `sentencepiece` trains one; otherwise a .model file, a tokenizer.json or a vocab.json.
        vocab_size: of the tokenizer that is trained.
        validation_fraction: the share of documents held out, where the source has no split of its own.
        on_bad: `fail` ends at the first broken document; `skip` leaves them out and says how many.
        cache: the folder of tokenizers and token caches.
        verify: read all tokens again and compare their checksums.
        json: print one JSON object instead of sentences.
    """

    source: Annotated[str | None, tyro.conf.Positional] = None
    config: str | None = None
    tokenizer: str | None = None
    vocab_size: int | None = None
    validation_fraction: float | None = None
    on_bad: Literal["fail", "skip"] | None = None
    cache: str | None = None
    verify: bool = False
    json: bool = False


def main(arguments: Sequence[str] | None = None) -> int:
    flags = parse_flags(Arguments, arguments, prog="python -m train.prepare", description=__doc__)

    from mom_jax.fields import ConfigError
    from train.data.cache import describe_left_out
    from train.data.prepared import components, prepare

    data = load_config(flags.config).data if flags.config else DataConfig()
    given = flags.source is not None or flags.config is not None
    if not given:
        raise ConfigError("source: name one, or a configuration with --config FILE")
    names = {field.name for field in dataclasses.fields(DataConfig)}
    changes = {name: value for name, value in vars(flags).items() if name in names and value is not None}
    data = dataclasses.replace(data, **changes)

    console = Console(stderr=True, highlight=False)

    def notify(text: str) -> None:
        console.print(text, markup=False, soft_wrap=True)

    for name, _ in components(data.source):
        if name.startswith("tfds:"):
            from train.data.sources.tfds_builder import download_tfds

            download_tfds(name, notify)
        if name.startswith("hf:"):
            from train.data.sources.hf import find_hf

            find_hf(name, Path(os.path.expanduser(data.cache)), notify)
    with _bars(console) as bar:
        prepared = prepare(data, notify, bar)
    records = []
    for name, *sides in zip(prepared.names, prepared.train, prepared.validation, strict=True):
        record: dict[str, Any] = {"source": name, "folder": str(sides[0].folder)}
        for side, cache in zip(("train", "validation"), sides, strict=True):
            if flags.verify:
                cache.verify()
            record[side] = {"tokens": cache.num_tokens, "documents": cache.num_documents}
        left_out = sides[0].left_out
        if left_out is not None:
            record["left_out"] = left_out
        records.append(record)
        if not flags.json:
            counts = (
                f"{side} {record[side]['tokens']:,} tokens in {record[side]['documents']:,} documents"
                for side in ("train", "validation")
            )
            broken = "" if left_out is None else f"; {describe_left_out(left_out)}"
            print(f"{name}: {'; '.join(counts)}{broken}{'; checksums are right' if flags.verify else ''}")
    if flags.json:
        print(json.dumps({"tokenizer": prepared.tokenizer.fingerprint, "sources": records}))
    return 0


@contextlib.contextmanager
def _bars(console: Console) -> Iterator[Any]:
    """Yields what makes a bar of a text and returns what moves it; None where there is no terminal to show it."""
    if not console.is_terminal:
        yield None
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[tokens]}"),
    )
    with Progress(*columns, TimeRemainingColumn(), console=console) as bars:

        def bar(what: str) -> Any:
            task, start = bars.add_task(what, total=1.0, tokens=""), time.monotonic()
            first: list[int] = []

            def report(share: float, tokens: int) -> None:
                first[:] = first or [tokens]  # what an interrupted run did is not this one's speed
                speed = (tokens - first[0]) / (time.monotonic() - start)
                bars.update(task, completed=share, tokens=f"{tokens:,} tokens, {speed:,.0f} tokens/s")

            return report

        yield bar


if __name__ == "__main__":
    run_program(main)
