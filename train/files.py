"""Files and folders that are there whole or not at all."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from mom_jax.fields import ConfigError


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A file to write aside, renamed into place at the end: whenever the machine stops, the old or the new one is
    there."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        _sync(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    _sync(path.parent)


def write_whole(path: Path, content: bytes) -> None:
    """Writes a `whole_file`."""
    with whole_file(path) as partial:
        partial.write_bytes(content)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_new(output: Path) -> None:
    """Raises `ConfigError` if `output` is there already, other than as an empty folder."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(f"output={str(output)!r}: is there already")


@contextlib.contextmanager
def writing(output: Path) -> Iterator[None]:
    """Raises `ConfigError` where `output` cannot be written."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"output={str(output)!r}: cannot be written ({error.strerror or error})") from None


@contextlib.contextmanager
def whole_folder(output: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `output` at the end, or is removed. Raises `ConfigError` if `output` is
    there already or cannot be written."""
    check_new(output)
    partial = output.with_name(f".{output.name}.{os.getpid()}.partial")
    with writing(output):
        try:
            partial.mkdir(parents=True)
            yield partial
            if output.exists():
                output.rmdir()
            partial.rename(output)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
