"""Makes the texts of configs/studies/domains.py: `python -m configs.studies.texts.domains [--out data/domains]`.

A JSONL file for each domain, all of as many bytes: code (the sources of Python's standard library), english (the Linux
kernel's documentation, the Debian package linux-doc-6.1), french and german (manual pages: manpages-fr, manpages-de).
Packages are downloaded by apt-get as it is configured, or given as files with --deb. docs/studies.md
"""

import argparse
import contextlib
import dataclasses
import hashlib
import json
import platform
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mom_jax.fields import nearest, require
from train.cli import Parser, notify, run_program
from train.data.sources import debian, manual
from train.data.texts import documents_of
from train.files import to_json, whole_folder, write_whole

FOLDER = "data/domains"
COMMAND = "python -m configs.studies.texts.domains"
CONTENTS = "contents.json"

SHORTEST = 200  # bytes: shorter documents say only where to look


@dataclasses.dataclass(frozen=True)
class Domain:
    """Documents of one kind: files of a Debian package, or, without one, the quickstart's. files: their whole paths.
    manual: whether they are manual pages."""

    package: str = ""
    files: str = ""
    manual: bool = False


DOMAINS = {
    "code": Domain(),
    "english": Domain("linux-doc-6.1", r"usr/share/doc/[^/]+/Documentation/(?!translations/).*\.rst(\.gz)?"),
    "french": Domain("manpages-fr", r"usr/share/man/fr/.*\.gz", manual=True),
    "german": Domain("manpages-de", r"usr/share/man/de/.*\.gz", manual=True),
}


def file_of(domain: str) -> str:
    """Where a domain's documents lie unless told otherwise."""
    return f"{FOLDER}/{domain}.jsonl"


def main(arguments: Sequence[str] | None = None) -> int:
    flags = _flags(arguments)
    require(flags.bytes >= SHORTEST, "bytes", flags.bytes, f"must be at least {SHORTEST}")
    names = [name.strip() for name in flags.only.split(",")] if flags.only else list(DOMAINS)
    for name in names:
        require(name in DOMAINS, "only", name, f"no such domain; {nearest(name, DOMAINS)}")
    given = _given(flags.deb)
    if any(DOMAINS[name].manual for name in names):
        manual.check_groff()
    out = Path(flags.out).expanduser()
    with whole_folder(out) as folder:
        contents = {}
        for name in names:
            with _package(DOMAINS[name], given) as deb:
                contents[name] = _write(folder / f"{name}.jsonl", name, deb, flags.bytes)
            about = contents[name]
            notify(f"{name}: {about['bytes']:,} bytes of text in {about['documents']:,} documents")
        write_whole(folder / CONTENTS, to_json(contents, indent=1))
    print(out)
    return 0


def _flags(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(COMMAND, description=__doc__, allow_abbrev=False)
    parser.add_argument("--out", default=FOLDER, metavar="FOLDER", help="a new folder for the texts (%(default)s)")
    parser.add_argument("--bytes", type=int, default=4_000_000, help="of each domain's text, as UTF-8 (%(default)s)")
    parser.add_argument("--only", metavar="NAMES", help=f"with commas between; by default {','.join(DOMAINS)}")
    parser.add_argument(
        "--deb",
        action="append",
        default=[],
        metavar="FILE",
        help="a package that lies here, by the name Debian gave it",
    )
    return parser.parse_args(arguments)


def _given(files: Sequence[str]) -> dict[str, Path]:
    """The files by their packages' names. Raises ConfigError for a package that no domain needs."""
    packages = [domain.package for domain in DOMAINS.values() if domain.package]
    found = {}
    for file in files:
        path = Path(file).expanduser()
        package = path.name.partition("_")[0]
        must = f"must be named PACKAGE_VERSION_ARCHITECTURE.deb; packages are {', '.join(packages)}"
        require(package in packages and path.suffix == ".deb", "deb", file, must)
        require(path.is_file(), "deb", file, "no such file")
        found[package] = path
    return found


@contextlib.contextmanager
def _package(domain: Domain, given: dict[str, Path]) -> Iterator[Path | None]:
    """The domain's package, downloaded where it is not given; None where it needs none."""
    if not domain.package or domain.package in given:
        yield given.get(domain.package)
        return
    with tempfile.TemporaryDirectory() as folder:
        notify(f"{domain.package}: downloading")
        yield debian.download(domain.package, Path(folder))


def _write(file: Path, name: str, deb: Path | None, limit: int) -> dict[str, Any]:
    """Documents of `limit` bytes, in the order of their names' hashes. The last is cut after a line.

    Returns what is in the file. Raises ConfigError for a domain with less.
    """
    count, room, left_out = 0, limit, 0
    with file.open("w", encoding="utf-8") as lines:
        for text in _documents(DOMAINS[name], deb):
            size = 0 if text is None else len(text.encode())
            if text is None or size < SHORTEST:
                left_out += 1
                continue
            if size > room:
                text = text.encode()[:room].decode(errors="ignore").rpartition("\n")[0] + "\n"
                size = len(text.encode())
            if size < SHORTEST:  # all that fits of it
                continue
            lines.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
            count, room = count + 1, room - size
            if room < SHORTEST:
                break
    require(room < SHORTEST, "bytes", limit, f"{name} has only {limit - room}")
    return {
        "bytes": limit - room,
        "documents": count,
        "left_out": left_out,
        "sha256": _sha256(file),
        "from": {"python": platform.python_version()} if deb is None else {"deb": deb.name, "sha256": _sha256(deb)},
    }


def _documents(domain: Domain, deb: Path | None) -> Iterator[str | None]:
    """All texts; None for what is no text. Only those that are asked for are made."""
    if deb is None:
        texts = {document.name: document.text for document in documents_of("builtin:stdlib")}
        yield from (texts[name] for name in _shuffled(texts))
        return
    files = debian.read_files(deb, re.compile(domain.files))
    require(len(files) > 0, "deb", str(deb), f"has no file {domain.files}")
    for name in _shuffled(files):
        yield manual.plain_text(files[name]) if domain.manual else _decoded(files[name])


def _shuffled(names: Iterable[str]) -> list[str]:
    """In an order that has nothing to do with what they say, and is always the same."""
    return sorted(names, key=lambda name: hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest())


def _decoded(content: bytes) -> str | None:
    try:
        return content.decode()
    except UnicodeDecodeError:
        return None


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


if __name__ == "__main__":
    run_program(main)
