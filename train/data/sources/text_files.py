"""Text files as a source: a document a file, or a line of JSONL; compressed files are read through."""

import codecs
import gzip
import io
import json
import lzma
import sys
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from train.data.documents import NO_TEXT, NOT_UTF8, Broken, Document, Item, Part, Side, Source
from train.data.sources.files import PART, Files, matching
from train.data.splitting import safe_cut

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

# Longer documents come in pieces of about so many characters, so that no file has to fit into memory.
_PIECE = 2**20
# The longest line of JSONL, in bytes; and how much a compressed file may unpack to: so many times its size, and so many
# bytes more.
_LINE, _RATIO, _ROOM = 2**28, 200, 2**28

_OPENERS = {".gz": gzip.open, ".xz": lzma.open, ".zst": zstd.open}
_COMPRESSED = tuple(_OPENERS)
_JSONL = (".jsonl", ".ndjson", ".json")
_DAMAGED, _MUST = "damaged", 'must be a JSON object with a text under "text"'
DAMAGED = (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, zstd.ZstdError)


def open_text(source: str, validation_fraction: float) -> Source:
    """Opens `text:GLOB`.

    A single text file has no documents to hold out: its last `validation_fraction` becomes one. Raises `ConfigError`
    naming `data.source` where no file matches.
    """
    files = matching(source, source.removeprefix("text:"), "text:FOLDER/**/*.txt")
    if len(files) == 1 and 0 < validation_fraction < 1 and not files[0][0].lower().endswith((*_COMPRESSED, *_JSONL)):
        return _two_sides(source, *files[0], validation_fraction)
    return from_files(source, files, {})


def from_files(source: str, files: Sequence[tuple[str, Path]], facts: dict[str, Any]) -> Source:
    """A source of (name, path) pairs. facts: more of what identifies it."""
    reader = _Reader(source)
    sizes = [reader.size(path) for _, path in files]
    parts, group, total = [], [], 0
    for file, size in zip(files, sizes, strict=True):
        group.append(file)
        total += size
        if total >= PART:
            parts.append(reader.part(tuple(group), total))
            group, total = [], 0
    if group:
        parts.append(reader.part(tuple(group), total))
    return Source(source, tuple(parts), {"source": source, **facts, **reader.fingerprint(files, sum(sizes))})


def _two_sides(source: str, name: str, path: Path, fraction: float) -> Source:
    """One file as two documents: all but its last `fraction`, and the rest, from the start of a line or a word."""
    reader = _Reader(source)
    size = reader.size(path)
    with reader.opened(path) as file:
        start = int(size * (1 - fraction))
        file.seek(start)
        block = file.read(_PIECE)
    line, word = block.find(b"\n") + 1, block.find(b" ")
    cut = start + (line or word) if line or word >= 0 else size
    sides: list[tuple[Side, int, int]] = [("train", 0, cut), ("validation", cut, size)]
    parts = [
        Part(path.name, stop - start, lambda a=start, b=stop: reader.text(name, path, a, b), side)  # type: ignore[misc]
        for side, start, stop in sides
        if stop > start
    ]
    return Source(source, tuple(parts), {"source": source, "cut": cut, **reader.fingerprint([(name, path)], size)})


class _Unreadable(Exception):
    """Of a file's content from some place on. kind, why: `Broken`'s."""

    def __init__(self, kind: str, why: str) -> None:
        super().__init__(why)
        self.kind, self.why = kind, why


class _Reader(Files):
    """Reads text and JSONL files."""

    def part(self, files: tuple[tuple[str, Path], ...], size: int) -> Part:
        name = files[0][0] if len(files) == 1 else f"{files[0][0]} to {files[-1][0]}"
        return Part(name, size, lambda: self._files(files))

    def _files(self, files: tuple[tuple[str, Path], ...]) -> Iterator[Item]:
        before = 0
        for name, path in files:
            size, plain = self.size(path), path.name.lower()
            for ending in _COMPRESSED:
                plain = plain.removesuffix(ending)
            read = self._lines if plain.endswith(_JSONL) else self.text
            for item in read(name, path):
                yield item._replace(position=before + item.position)
            before += size

    def text(self, name: str, path: Path, start: int = 0, stop: int | None = None) -> Iterator[Item]:
        """The text of a file, or of its bytes from `start` to `stop`, in pieces."""
        try:
            yield from self._pieces(name, path, start, stop)
        except _Unreadable as error:
            yield Broken(
                name, error.kind, str(self.error(error.why)), self.size(path) if stop is None else stop - start
            )

    def _pieces(self, name: str, path: Path, start: int, stop: int | None) -> Iterator[Item]:
        decoder = codecs.getincrementaldecoder("utf-8")()
        rest, done = "", start
        with self.opened(path) as raw:
            raw.seek(start)
            stream = decompressed(path, raw)
            while True:
                block = self._read(stream, path, _PIECE if stop is None else min(_PIECE, stop - done))
                pending = len(decoder.getstate()[0])
                try:
                    rest += decoder.decode(block, final=not block)
                except UnicodeDecodeError as error:
                    where = f"{path} is not UTF-8 (byte {done - pending + error.start})"
                    raise _Unreadable(NOT_UTF8, where) from None
                done += len(block)
                if not block:
                    break
                while len(rest) > 2 * _PIECE:
                    cut = safe_cut(rest, _PIECE)
                    yield Document(name, rest[:cut], last=False, position=raw.tell() - start)
                    rest = rest[cut:]
            yield Document(name, rest, position=raw.tell() - start)

    def _lines(self, name: str, path: Path) -> Iterator[Item]:
        """The documents of a JSONL file: an object a line, its text under "text"; empty lines are left out."""
        with self.opened(path) as raw:
            stream, number = decompressed(path, raw), 0
            while True:
                number += 1
                try:
                    line = self._read(stream, path)
                    if not line:
                        break
                    if not line.strip():
                        continue
                    if len(line) > _LINE:
                        while line and not line.endswith(b"\n"):
                            line = self._read(stream, path)
                        raise _Unreadable("too long", f"{path}, line {number}: has more than {_LINE:,} bytes")
                    yield Document(f"{name}:{number}", _text_of(line, path, number), position=raw.tell())
                except _Unreadable as error:
                    yield Broken(f"{name}:{number}", error.kind, str(self.error(error.why)), raw.tell())
                    if error.kind == _DAMAGED:
                        break

    def _read(self, stream: IO[bytes], path: Path, size: int | None = None) -> bytes:
        """At most `size` bytes, or a line."""
        try:
            block = stream.readline(_LINE + 1) if size is None else stream.read(size)
        except DAMAGED as error:
            raise _Unreadable(_DAMAGED, f"{path} is damaged or cut off ({error}); replace it") from None
        except OSError as error:
            raise self.error(f"cannot read {path} ({error.strerror or error})") from None
        if not block and path.suffix.lower() in _OPENERS and self.size(path) == 0:
            raise _Unreadable(_DAMAGED, f"{path} is empty, which no compressed file is; replace it")
        unpacked = 0 if isinstance(stream, io.BufferedReader) else stream.tell()
        if unpacked > _ROOM and unpacked > _ROOM + _RATIO * self.size(path):
            raise _Unreadable(_DAMAGED, f"{path} unpacks to more than {_RATIO} times its size: it is no text")
        return block


def _text_of(line: bytes, path: Path, number: int) -> str:
    """The text of a line of JSONL."""
    try:
        text = json.loads(line)["text"]
        text.encode()  # JSON can hold halves of surrogate pairs, which no text has
    except UnicodeDecodeError as error:
        raise _Unreadable(NOT_UTF8, f"{path}, line {number} is not UTF-8 (byte {error.start} of it)") from None
    except (KeyError, TypeError, AttributeError, UnicodeEncodeError):
        raise _Unreadable(NO_TEXT, f"{path}, line {number}: {_MUST}") from None
    except (ValueError, RecursionError):
        raise _Unreadable("no JSON", f"{path}, line {number}: {_MUST}") from None
    return text


def decompressed(path: Path, raw: IO[bytes]) -> IO[bytes]:
    opener: Any = _OPENERS.get(path.suffix.lower())
    return raw if opener is None else opener(raw)
