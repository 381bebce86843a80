"""Files and folders that are there whole or not at all."""

import contextlib
import errno
import fcntl
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from mom_jax.fields import ConfigError, require


def to_json(value: Any, indent: int | None = None) -> bytes:
    """`value` as a JSON file. Raises ValueError for NaN and infinity, which JSON has not."""
    return (json.dumps(value, indent=indent, allow_nan=False) + "\n").encode()


# What the system says of a disk that takes no more.
_SYSTEM = tuple(os.strerror(n) for n in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG, errno.EIO))


@contextlib.contextmanager
def whole_file(path: Path, *, new: bool = False) -> Iterator[Path]:
    """A file to write aside, renamed into place at the end: whenever the machine stops, the old or the new one is
    there. new: raise `ConfigError` where one is there by then, of another process."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.unlink(missing_ok=True)  # of another process of this number, which was killed; or a link
        partial.touch(exist_ok=False)
        yield partial
        _sync(partial)
        if new:
            _put_new(partial, path)
        else:
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    _sync(path.parent)


def _put_new(partial: Path, path: Path) -> None:
    try:
        os.link(partial, path)
    except FileExistsError:
        raise ConfigError(f"output={str(path)!r}: is there already") from None
    except OSError:  # a file system without links
        check_new(path)
        partial.replace(path)


def write_whole(path: Path, content: bytes) -> None:
    """Writes a `whole_file`."""
    with whole_file(path) as partial:
        partial.write_bytes(content)


def open_own(path: Path, flags: int, name: str) -> int:
    """Opens or makes a file that a program writes on its own account in a folder that may be a stranger's.

    Returns a descriptor. flags: of `os.open`. Raises OSError, and `ConfigError` beginning with `name` for a link, which
    would lead to a file that is not meant, and whatever else is no regular file.
    """
    try:
        descriptor = os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise ConfigError(f"{name}: {str(path)!r} must be a plain file, no link and nothing else") from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ConfigError(f"{name}: {str(path)!r} must be a plain file, no link and nothing else")
    return descriptor


def check_no_links(folder: Path, parts: Iterable[str], name: str) -> None:
    """Raises `ConfigError` beginning with `name` where one of these parts of a folder, into which a program writes and
    where it deletes, is a link: in a stranger's folder it may lead to any other."""
    for part in parts:
        if (folder / part).is_symlink():
            own = f"{str(folder / part)!r} must be a folder of its own, not a link"
            raise ConfigError(f"{name}: {own}; to keep all of it elsewhere, name that place, or a link to it")


@contextlib.contextmanager
def locked(
    path: Path,
    name: str,
    *,
    wait: bool,
    temporary: bool = False,
    waiting: Callable[[], None] = lambda: None,
) -> Iterator[bool]:
    """Holds a lock file, which is made if need be and never changed; yields whether it is held.

    wait: for another process that holds it, after a call of `waiting`; else False is yielded. temporary: remove it
    where what is within fails.
    Raises OSError where it cannot be made, and `ConfigError` beginning with `name` for a link and on file systems
    without locks.
    """
    while True:
        descriptor = open_own(path, os.O_RDWR, name)
        try:
            held = _lock(descriptor, name)
            if wait and not held:
                waiting()
                held = _lock(descriptor, name, wait=True)
            # Who held it before may have removed it, as something that came to nothing.
            if held and not _is_at(descriptor, path):
                continue
            try:
                yield held
            except BaseException:
                if held and temporary:
                    path.unlink(missing_ok=True)
                raise
            return
        finally:
            os.close(descriptor)


def _lock(descriptor: int, name: str, *, wait: bool = False) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        without = f"the file system has no locks ({error.strerror}), which keep two processes from one folder"
        raise ConfigError(f"{name}: {without}; choose a folder on another one") from None
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


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


def check_replaceable(output: Path, own: bytes, what: str, field: str = "output") -> None:
    """Raises `ConfigError` naming `field` where there is something at `output` that is not a file of ours: of those the
    first bytes have `own` among them. what: what such a file is."""
    if not os.path.lexists(output):
        return
    good = output.is_file()
    if good:
        with writing(output), output.open("rb") as file:
            good = own in file.read(4096)
    require(good, field, str(output), f"is there already, and is not {what}; choose another name")


@contextlib.contextmanager
def writing(output: Path) -> Iterator[None]:
    """Raises `ConfigError` where `output` cannot be written."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"output={str(output)!r}: cannot be written ({error.strerror or error})") from None
    except Exception as error:  # libraries that write have errors of their own, which name the system's
        said = next((text for text in _SYSTEM if text in str(error)), None)
        if said is None:
            raise
        raise ConfigError(f"output={str(output)!r}: cannot be written ({said})") from None


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
