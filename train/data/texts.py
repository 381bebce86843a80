"""Whole documents of a source as texts, one after the other."""

import dataclasses
from collections.abc import Iterator

from train.config import DataConfig
from train.data.documents import Broken, OnBad, Part, Source, side_of
from train.data.prepared import components
from train.data.sources.kinds import open_source


@dataclasses.dataclass(frozen=True)
class Text:
    """A document. name: where it comes from. text: all of it."""

    name: str
    text: str


def documents_of(
    source: str,
    *,
    held_out: float | None = None,
    limit: int = 0,
    on_bad: OnBad = "fail",
    cache: str = DataConfig.cache,
) -> Iterator[Text]:
    """The documents of `source` (a `DataConfig.source`, also a mixture, of whose parts each is read whole).

    held_out: only those that a run with this `validation_fraction` holds out: the source's own validation split, or
    those that the hash of their names chooses. limit: the first so many; 0 gives all. on_bad: what becomes of broken
    ones. cache: a `DataConfig.cache`. Raises ConfigError naming `data.source` for what is no source of documents (token
    files have no text).
    """
    count = 0
    for name, _ in components(source):
        opened = open_source(name, held_out or 0.0, on_bad, cache)
        for part in opened.parts:
            for text in _whole(opened, part):
                if held_out is not None and side_of(part.side, text.name, held_out) != "validation":
                    continue
                yield text
                count += 1
                if count == limit:
                    return


def _whole(source: Source, part: Part) -> Iterator[Text]:
    """A part's documents, long ones put together of their pieces."""
    pieces: list[str] = []
    for document in source.read(part):
        if isinstance(document, Broken):
            pieces = []
            continue
        pieces.append(document.text)
        if document.last:
            yield Text(document.name, "".join(pieces))
            pieces = []
