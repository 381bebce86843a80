"""What a source is made of: parts, which are read one by one, and the documents in them."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

Side = Literal["train", "validation"]
# What stands for the id of the token that ends a document where no token does.
NO_EOS = -1
SIDES: tuple[Side, ...] = ("train", "validation")


class Document(NamedTuple):
    """A document, or one of the pieces of a long one, which follow each other.

    name: the same wherever the source lies; it decides on which side of the split the document is. text: all of it,
    line endings as they are. last: whether the document ends here. position: how much of the part has been read when
    this is, in the unit of the part's size.
    """

    name: str
    text: str
    last: bool = True
    position: int = 0


@dataclasses.dataclass(frozen=True)
class Part:
    """Documents that are read together, always in the same order.

    name: unique in its source. size: bytes, or documents; only for showing progress. read: a new iterator over all
    documents; raises `ConfigError` for what cannot be read. side: of all its documents, where the source has a split of
    its own.
    """

    name: str
    size: int
    read: Callable[[], Iterator[Document]]
    side: Side | None = None


@dataclasses.dataclass(frozen=True)
class Source:
    """What is behind a `data.source`, always in the same order.

    source: the text that it was opened with. facts: what identifies the documents, ready for JSON.
    """

    source: str
    parts: tuple[Part, ...]
    facts: dict[str, Any]

    def documents(self) -> Iterator[Document]:
        """All documents of all parts."""
        for part in self.parts:
            yield from part.read()


def side_of(own: Side | None, name: str, fraction: float) -> Side:
    """The side of the document `name`: its part's own, or the one that its name gives it."""
    return own or ("validation" if is_held_out(name, fraction) else "train")


def is_held_out(name: str, fraction: float) -> bool:
    """Whether the document `name` is for validation; about `fraction` of all names are.

    By a hash of the name alone: adding or removing documents moves no other document to the other side.
    """
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64
