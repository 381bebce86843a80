"""Records that vouch for themselves: a byte that changes in such a JSON file is noticed when it is read."""

import json
import zlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from mom_jax.fields import ConfigError
from train.files.reading import MOST_JSON, read_json
from train.files.writing import to_json, write_whole

CHECKSUM = "checksum"


def write_record(path: Path, facts: Mapping[str, Any], indent: int | None = 2) -> None:
    """Writes a JSON file with its checksum, whole."""
    write_whole(path, to_json(with_checksum(facts), indent))


def read_record(
    path: Path, name: str, known: Collection[str] | None = None, most: int = MOST_JSON, *, old: bool = False
) -> dict[str, Any]:
    """What `write_record` wrote. Raises `ConfigError` beginning with `name` where it is not that; known: see
    `without_checksum`. old: see `parse_json`."""
    record = read_json(path, name, most, old=old)
    try:
        return without_checksum(record, known)
    except ValueError as error:
        raise ConfigError(f"{name}: {error}") from None


def with_checksum(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The record to write: the facts, and the CRC-32 of what JSON makes of them."""
    return {**facts, CHECKSUM: _crc_of(facts)}


def without_checksum(record: Any, known: Collection[str] | None = None) -> dict[str, Any]:
    """The facts of a record that was read. Raises ValueError where they are not what was written.

    known: the names that records of older versions have, which had no checksum. With any other name one is missing: it
    is that of the checksum, in which something has changed.
    """
    if not isinstance(record, dict):
        raise ValueError("must be a JSON object")
    facts = {name: value for name, value in record.items() if name != CHECKSUM}
    if CHECKSUM in record:
        good = record[CHECKSUM] == _crc_of(facts)
    else:
        good = known is not None and facts.keys() <= set(known)
    if not good:
        raise ValueError("does not have the checksum that it was written with")
    return facts


def _crc_of(facts: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(facts, sort_keys=True).encode())
