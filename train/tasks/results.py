"""Results on disk: one JSON file for each fine-tuning, whole or not there, so that work goes on where it ended."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mom_jax.fields import ConfigError, require, shown
from train.files import read_json, without_checksum, write_record, writing

VERSION = 2
_BARE = 1  # had no checksum


def read(file: Path) -> dict[str, Any] | None:
    """What `write` wrote; None if there is no file. Raises ConfigError for one that is damaged or of another kind."""
    if not file.is_file():
        return None
    try:
        record = read_json(file, str(file))
        if not isinstance(record, dict) or record.get("version") not in (VERSION, _BARE):
            raise ConfigError(f"{file}: is no result that this program wrote")
        return record if record["version"] == _BARE else without_checksum(record)
    except ConfigError as error:
        raise ConfigError(f"{error}; delete it to do that part again") from None
    except ValueError as error:
        raise ConfigError(f"{file}: {error}; delete it to do that part again") from None


def read_own(file: Path, digest: str, **fields: Any) -> dict[str, Any] | None:
    """The same of a result that is to be of the model with that digest, and to have these fields. Raises ConfigError
    for another one's, which was copied there."""
    record = read(file)
    if record is None:
        return None
    model = record.get("model")
    have = {**record, "model": model.get("digest") if isinstance(model, dict) else None}
    for name, value in {"model": digest, **fields}.items():
        if have.get(name) != value:
            other = f"is of {name} {shown(have.get(name))}, not {shown(value)}"
            raise ConfigError(f"{file}: {other}; delete it to do that part again")
    if not isinstance(record.get("settings"), dict):
        raise ConfigError(f"{file}: has no settings; delete it to do that part again")
    return record


def write(file: Path, record: Mapping[str, Any]) -> None:
    """Writes a result, whole. Raises ConfigError where that cannot be."""
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_record(file, {"version": VERSION, **record}, indent=None)


def check_output(output: Path) -> None:
    """Raises ConfigError unless files can be written below `output`, which need not be there yet."""
    there = next(folder for folder in (output.absolute(), *output.absolute().parents) if os.path.exists(folder))
    good = there.is_dir() and os.access(there, os.W_OK)
    require(good, "output", str(output), f"cannot be written: {there} is {'read-only' if there.is_dir() else 'a file'}")


def check_same(file: Path, have: Mapping[str, Any], want: Mapping[str, Any], prefix: str) -> None:
    """Raises ConfigError naming the first field of the settings `want` that differs from those of a finished result."""
    want = json.loads(json.dumps(want))  # tuples become lists
    for name in {**want, **have}:
        if have.get(name) != want.get(name):
            theirs, ours = have.get(name), want.get(name)
            problem = f"{file} was made with {theirs!r}; choose another --output, or delete that file"
            raise ConfigError(f"{prefix}.{name}={ours!r}: {problem}")


def statistics(values: list[float]) -> dict[str, Any]:
    """Mean and standard deviation (of a sample, n - 1; None of one value)."""
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "deviation": deviation, "values": values}
