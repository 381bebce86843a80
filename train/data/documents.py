"""What a source is made of: parts, which are read one by one, and the documents in them, some of them broken."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

from mom_jax.fields import ConfigError

Side = Literal["train", "validation"]
OnBad = Literal["fail", "skip"]
# What stands for the id of the token that ends a document where no token does.
NO_EOS = -1
SIDES: tuple[Side, ...] = ("train", "validation")
# Kinds of what is broken that several sources know.
NOT_UTF8, NO_TEXT = "not UTF-8", "without a text"


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


class Broken(NamedTuple):
    """What stands where a document should be, or after the first pieces of one, which then is none either.

    name, position: as a document's. kind: what is wrong, in words that are counted. why: one line that says where.
    """

    name: str
    kind: str
    why: str
    position: int = 0


Item = Document | Broken


@dataclasses.dataclass(frozen=True)
class Part:
    """Documents that are read together, always in the same order.

    name: unique in its source. size: bytes, or documents; only for showing progress. read: a new iterator over all
    documents, with what is broken in its place; raises `ConfigError` for what cannot be read. side: of all its
    documents, where the source has a split of its own.
    """

    name: str
    size: int
    read: Callable[[], Iterator[Item]]
    side: Side | None = None


@dataclasses.dataclass(frozen=True)
class Source:
    """What is behind a `data.source`, always in the same order.

    source: the text that it was opened with. facts: what identifies the documents, ready for JSON. on_bad: what
    becomes of broken documents.
    """

    source: str
    parts: tuple[Part, ...]
    facts: dict[str, Any]
    on_bad: OnBad = "fail"

    def with_on_bad(self, on_bad: OnBad) -> "Source":
        """The same with this `on_bad`, which then is among the facts: it changes what there is."""
        facts = self.facts if on_bad == "fail" else {**self.facts, "on_bad": on_bad}
        return dataclasses.replace(self, on_bad=on_bad, facts=facts)

    def read(self, part: Part) -> Iterator[Item]:
        """What one of the parts has. Raises `ConfigError` where something is broken, unless that is to be skipped."""
        for item in part.read():
            if isinstance(item, Broken) and self.on_bad == "fail":
                raise ConfigError(f"{item.why} (data.on_bad='skip' leaves out what is broken)")
            yield item

    def documents(self) -> Iterator[Document]:
        """All documents of all parts."""
        for part in self.parts:
            yield from (item for item in self.read(part) if isinstance(item, Document))


def side_of(own: Side | None, name: str, fraction: float) -> Side:
    """The side of the document `name`: its part's own, or the one that its name gives it."""
    return own or ("validation" if is_held_out(name, fraction) else "train")


def is_held_out(name: str, fraction: float) -> bool:
    """Whether the document `name` is for validation; about `fraction` of all names are.

    By a hash of the name alone: adding or removing documents moves no other document to the other side.
    """
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64
