"""Where documents come from. `open_source` knows the kinds; each lists its parts in a fixed order."""

import os
import platform
import sysconfig
from collections.abc import Callable
from pathlib import Path

from mom_jax.fields import nearest, require
from train.config import DataConfig
from train.data.documents import OnBad, Source
from train.data.sources import text_files

# Neither tests nor what an installation adds: build-time settings differ between machines with the same Python.
_NOT_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
_PER_INSTALLATION = ("config-", "_sysconfigdata", "sitecustomize", "usercustomize")


def open_source(
    source: str, validation_fraction: float = 0.0, on_bad: OnBad = "fail", cache: str = DataConfig.cache
) -> Source:
    """Opens `builtin:stdlib`, `text:GLOB` or `parquet:GLOB#COLUMN` (`**` is any depth, `~` the home folder),
    `tfds:NAME/CONFIG` or `hf:NAME/CONFIG`.

    validation_fraction: the end of a single text file that becomes a document of its own, to be held out. on_bad: what
    becomes of broken documents. cache: where it is kept what a data set of Hugging Face's is.

    Raises `ConfigError` naming `data.source` for an unknown source or one without files.
    """
    kinds: dict[str, Callable[[], Source]] = {
        "builtin": lambda: _builtin(source),
        "text": lambda: text_files.open_text(source, validation_fraction),
        "parquet": lambda: _parquet(source),
        "tfds": lambda: _tfds(source),
        "hf": lambda: _hf(source, cache),
    }
    scheme, colon, _ = source.partition(":")
    known = [*kinds, "bin", "mix"]
    require(bool(colon), "data.source", source, f"unknown; {nearest(source, ['builtin:stdlib', 'text:GLOB'])}")
    require(scheme in known, "data.source", source, f"unknown kind; {nearest(scheme, known)}")
    require(scheme in kinds, "data.source", source, "is no source of documents")
    return kinds[scheme]().with_on_bad(on_bad)


def _tfds(source: str) -> Source:
    from train.data.sources.tfds import open_tfds  # half a second

    return open_tfds(source)


def _parquet(source: str) -> Source:
    from train.data.sources.parquet import open_parquet

    return open_parquet(source)


def _hf(source: str, cache: str) -> Source:
    from train.data.sources.hf import open_hf

    return open_hf(source, Path(os.path.expanduser(cache)))


def _builtin(source: str) -> Source:
    require(source == "builtin:stdlib", "data.source", source, "unknown; did you mean 'builtin:stdlib'?")
    root = Path(sysconfig.get_path("stdlib"))
    files = {}
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in _NOT_LIBRARY]
        for path in (Path(folder, name) for name in names if name.endswith(".py")):
            name = path.relative_to(root).as_posix()
            if not name.startswith(_PER_INSTALLATION) and _is_utf8(path):
                files[name] = path
    require(bool(files), "data.source", source, f"this Python has no library sources in {root}")
    return text_files.from_files(source, sorted(files.items()), {"python": platform.python_version()})


def _is_utf8(path: Path) -> bool:
    try:
        path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    return True
