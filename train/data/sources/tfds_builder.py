"""TFDS's data sets by name: whether one is prepared, downloading and preparing it, and what can be wrong.

TFDS takes more than half a second to import, so that it is imported where it is needed only.
"""

import contextlib
import difflib
import errno
import lzma
import os
import re
import sys
import tarfile
import urllib.error
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mom_jax.fields import ConfigError, nearest, require
from train.files import read_json

FORMAT = "array_record"
MOST_FEATURES = 2**24  # bytes of a features.json that is read


REFERENCE = re.compile(
    r"tfds:(?P<name>[a-z]\w*)(/(?P<config>[^/:#,=\s]+))?(:(?P<version>\d+\.(\d+|\*)\.(\d+|\*)))?(#(?P<key>.+))?"
)


def data_dir() -> Path:
    """The folder of all TFDS data sets: the environment's `TFDS_DATA_DIR`, or `~/tensorflow_datasets`."""
    return Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def prepared_builder(source: str, hint: str) -> Any:
    """The `tfds.core.DatasetBuilder` of a data set that is prepared. Raises `ConfigError` naming `data.source` if it is
    unknown, not prepared (`hint` says what to do then), or prepared in another format."""
    builder = _builder(source)
    if not _is_prepared(source, builder):
        raise refusal(source, f"is not prepared in {data_dir()}; {hint}")
    return builder


def download_tfds(source: str, notify: Callable[[str], None]) -> None:
    """Downloads and prepares the data set of `source` under `data_dir()`; does nothing if it is prepared.

    say: called with a line of text before something that takes time. Whole or not at all: a run that was interrupted
    leaves finished downloads, and no half-prepared data set. Raises `ConfigError` naming `data.source` if the data set
    is unknown, prepared in another format or damaged, and if there is no network, no space, or a package missing.
    """
    import tensorflow_datasets as tfds

    from train.data.sources.builders.extraction import without_tensorflow

    builder = _builder(source, without_tensorflow)
    if _is_prepared(source, builder):
        return
    text_keys(source, builder.info.features)  # what has no text need not be downloaded
    folder = Path(builder.data_dir)
    if folder.exists():
        raise refusal(source, f"{folder} is not a whole data set; delete it and run: {prepare_command(source)}")
    for leftover in sorted(folder.parent.glob(f"incomplete.*_{folder.name}")):
        # Not deleted here: another program may be writing it right now.
        notify(f"{leftover} is half-prepared: unless another program is at it, delete it")
    notify(f"{source}: downloading and preparing {builder.info.full_name} in {data_dir()}")
    notify("(without a network, TFDS tries for about four minutes before it gives up)")
    try:
        # TFDS announces itself on the standard output, which belongs to the program.
        with contextlib.redirect_stdout(sys.stderr):
            config = tfds.download.DownloadConfig(try_download_gcs=False)
            builder.download_and_prepare(file_format=FORMAT, download_config=config)
    except Exception as error:
        problem = _download_problem(error)
        if problem is None:
            raise
        raise refusal(source, problem) from error


def refusal(source: str, problem: str) -> ConfigError:
    return ConfigError(f"data.source={source!r}: {problem}")


def prepare_command(source: str) -> str:
    return f"python -m train.prepare {source.partition('#')[0]}"


def _builder(source: str, adapt: Callable[[Any], Any] = lambda builder_class: builder_class) -> Any:
    """The `tfds.core.DatasetBuilder` of `source`, whether prepared or not, of the class that `adapt` makes of its."""
    match = REFERENCE.fullmatch(source)
    if match is None:
        raise refusal(source, "must be tfds:NAME, tfds:NAME/CONFIG or tfds:NAME/CONFIG:VERSION, then #KEY if need be")
    import tensorflow_datasets as tfds
    from google.protobuf import json_format

    name, config, version = match["name"], match["config"], match["version"]
    for file in sorted((data_dir() / name).rglob("features.json")):
        _check_features(source, file)
    builder_class = _builder_class(name)
    if builder_class is not None and config is not None:
        known = builder_class.builder_configs
        require(bool(known), "data.source", source, f"{name} has no configurations")
        require(config in known, "data.source", source, f"unknown configuration; {nearest(config, known)}")
    try:
        if builder_class is not None:
            return adapt(builder_class)(config=config, version=version, data_dir=str(data_dir()))
        # A data set of the user's own, of which only the files are there.
        return tfds.builder(source.removeprefix("tfds:").partition("#")[0], data_dir=str(data_dir()))
    except tfds.core.DatasetNotFoundError:
        close = difflib.get_close_matches(name, _known_names(), n=3)
        hint = f"did you mean {' or '.join(map(repr, close))}?" if close else "see tensorflow.org/datasets/catalog"
        raise refusal(source, f"there is no data set {name!r}; {hint}") from None
    except AssertionError as error:
        raise refusal(source, one_line(error)) from None
    except (json_format.ParseError, UnicodeDecodeError, LookupError, TypeError, ValueError, RecursionError) as error:
        raise refusal(source, f"dataset_info.json in {data_dir() / name} is damaged ({one_line(error)})") from None


def _check_features(source: str, file: Path) -> None:
    """Raises `ConfigError` where a prepared data set names feature classes that are not TFDS's own: TFDS would import
    the module that the file names, whatever it is."""
    found = [read_json(file, f"data.source={source!r}: {file}", MOST_FEATURES)]
    while found:
        item = found.pop()
        if isinstance(item, dict):
            for key in ("pythonClassName", "python_class_name", "type", "proto_cls"):
                name = item.get(key, "")
                # `type` of the oldest files, which give no module for TFDS's own.
                own = isinstance(name, str) and (name.startswith("tensorflow_datasets.") or "." not in name)
                if not own and isinstance(name, str):
                    why = f"{file} names the feature class {name[:100]!r}, which is not of tensorflow_datasets"
                    raise refusal(source, f"{why}: it is not imported")
            found += item.values()
        elif isinstance(item, list):
            found += item


def _builder_class(name: str) -> Any:
    """Our own builder, else that of TFDS, else None."""
    import tensorflow_datasets as tfds

    # TFDS finds these by importing all its builders, and stops at the first that needs a package that is not there.
    import tensorflow_datasets.summarization
    import tensorflow_datasets.text

    from train.data.sources.builders import BUILDERS

    if name in BUILDERS:
        return BUILDERS[name]
    try:
        return tfds.builder_cls(name)
    except tfds.core.DatasetNotFoundError:
        return None


def _known_names() -> set[str]:
    import tensorflow_datasets as tfds

    from train.data.sources.builders import BUILDERS

    return {*BUILDERS, *tfds.list_builders(with_community_datasets=False)}


def _is_prepared(source: str, builder: Any) -> bool:
    """Whether the data set is there; raises `ConfigError` if it is, but not in a format that can be read."""
    if not (Path(builder.data_dir) / "dataset_info.json").exists():
        return False
    found = {file_format.value for file_format in builder.info.available_file_formats()}
    problem = f"is prepared in {builder.data_dir} as {' and '.join(sorted(found)) or 'nothing'}, not {FORMAT}"
    if FORMAT not in found:
        raise refusal(source, f"{problem}; delete that folder and run: {prepare_command(source)}")
    return True


def _download_problem(error: Exception) -> str | None:
    """What the user can do about `error`, or None."""
    import requests
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError

    again = "finished downloads are kept: run the same command again"
    network = (requests.RequestException, urllib.error.URLError, tfds.download.DownloadError, ConnectionError)
    if isinstance(error, (*network, TimeoutError)):
        request = getattr(error, "request", None)
        what = request.url if request is not None else one_line(error)
        return f"could not download {what} ({type(error).__name__}); {again} with a network"
    # array_record's own errors have no number.
    full = isinstance(error, OSError) and error.errno == errno.ENOSPC
    if full or "No space left" in str(error) or "Not enough disk space" in str(error):
        return f"there is no space left in {data_dir()}; {again} with more"
    if isinstance(error, NonMatchingChecksumError):
        return f"{one_line(error)}; run the same command again"
    if isinstance(error, tarfile.TarError | zipfile.BadZipFile | lzma.LZMAError | zlib.error | EOFError):
        downloads = data_dir() / "downloads"
        return f"a download is damaged ({one_line(error)}); delete it in {downloads} and run the same command again"
    if isinstance(error, ImportError):
        return f"TFDS needs a package that is not installed to prepare it ({one_line(error)})"
    if isinstance(error, AssertionError):  # TFDS's way to ask for files that the user has to collect by hand.
        return one_line(error)
    return None


def one_line(error: Exception) -> str:
    """The error's text as one line."""
    return " ".join(str(error).split())


def text_keys(source: str, features: Any) -> list[str]:
    import tensorflow_datasets as tfds

    keys = [key for key, feature in features.items() if isinstance(feature, tfds.features.Text)]
    require(bool(keys), "data.source", source, f"has no text feature, only {', '.join(features)}")
    return keys
