"""Documents of TFDS data sets, prepared as array_record: `tfds:NAME[/CONFIG][:VERSION][#KEY]`.

TFDS takes more than half a second to import, so that it is imported where it is needed only.
"""

import contextlib
import difflib
import errno
import functools
import lzma
import os
import re
import sys
import tarfile
import urllib.error
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mom_jax.fields import ConfigError, nearest, require
from train.data.documents import SIDES, Document, Part, Source

EXAMPLES_PER_PART = 10_000
_FORMAT = "array_record"
# So many examples are fetched at once: 44,000 short ones a second on two cores, against 1,600 one by one.
_BATCH = 1000
_REFERENCE = re.compile(
    r"tfds:(?P<name>[a-z]\w*)(/(?P<config>[^/:#,=\s]+))?(:(?P<version>\d+\.(\d+|\*)\.(\d+|\*)))?(#(?P<key>.+))?"
)


def data_dir() -> Path:
    """The folder of all TFDS data sets: the environment's `TFDS_DATA_DIR`, or `~/tensorflow_datasets`."""
    return Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def open_tfds(source: str) -> Source:
    """Opens a data set that `download_tfds` or TFDS prepared; downloads nothing.

    A document is the text feature KEY of an example, by default `text` or else the only one. Only the splits `train`
    and `validation` are read; without the second, the side of a document is left open. A part has at most 10,000
    examples; its size and the documents' positions count them. Raises `ConfigError` naming `data.source` if the data
    set is unknown, not prepared, prepared in another format, damaged, or has no such feature.
    """
    builder = prepared_builder(source, f"run: {_command(source)}")
    key = _text_key(source, builder.info.features)
    splits = {side: builder.info.splits[side] for side in SIDES if side in builder.info.splits}
    require("train" in splits, "data.source", source, f"has no split 'train', only {', '.join(builder.info.splits)}")
    parts = []
    for split, info in splits.items():
        examples = builder.as_data_source(split, file_format=_FORMAT)
        for start in range(0, info.num_examples, EXAMPLES_PER_PART):
            stop = min(start + EXAMPLES_PER_PART, info.num_examples)
            read = functools.partial(_read, source, split, examples, key, start, stop)
            parts.append(Part(f"{split}[{start}:{stop}]", stop - start, read, split if len(splits) > 1 else None))
    facts = {
        "source": source,
        "dataset": builder.info.full_name,
        "feature": key,
        "splits": {
            split: {
                "examples": info.num_examples,
                "shard_lengths": list(info.shard_lengths),
                # A data set that was prepared anew may have other documents under the same name.
                "files": _identities(source, split, Path(builder.data_dir), [Path(path) for path in info.filepaths]),
            }
            for split, info in splits.items()
        },
    }
    return Source(source, tuple(parts), facts)


def prepared_builder(source: str, hint: str) -> Any:
    """The `tfds.core.DatasetBuilder` of a data set that is prepared. Raises `ConfigError` naming `data.source` if it is
    unknown, not prepared (`hint` says what to do then), or prepared in another format."""
    builder = _builder(source)
    if not _is_prepared(source, builder):
        raise _error(source, f"is not prepared in {data_dir()}; {hint}")
    return builder


def read_examples(source: str, builder: Any, split: str, limit: int = 0) -> Iterator[dict[str, Any]]:
    """The examples of a split as TFDS gives them (texts are bytes), in its order: by the hash of their keys. limit: at
    most so many; 0 for all. Raises `ConfigError` naming `data.source` for a split that is not there or is damaged."""
    splits = builder.info.splits
    require(split in splits, "data.source", source, f"has no split {split!r}, only {', '.join(splits)}")
    count = splits[split].num_examples
    examples = builder.as_data_source(split, file_format=_FORMAT)
    found = _fetch(source, split, examples, tuple(builder.info.features), 0, min(count, limit or count))
    return (example for _, example in found)


def _identities(source: str, split: str, folder: Path, files: list[Path]) -> list[list[Any]]:
    """Name, size in bytes and time of each file of a split."""
    try:
        stats = [(file.name, file.stat()) for file in files]
    except OSError as error:
        raise _damaged(source, split, folder, error.strerror or str(error)) from None
    return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]


def download_tfds(source: str, say: Callable[[str], None]) -> None:
    """Downloads and prepares the data set of `source` under `data_dir()`; does nothing if it is prepared.

    say: called with a line of text before something that takes time. Whole or not at all: a run that was interrupted
    leaves finished downloads, and no half-prepared data set. Raises `ConfigError` naming `data.source` if the data set
    is unknown, prepared in another format or damaged, and if there is no network, no space, or a package missing.
    """
    import tensorflow_datasets as tfds

    from train.data.builders.extraction import without_tensorflow

    builder = _builder(source, without_tensorflow)
    if _is_prepared(source, builder):
        return
    _text_keys(source, builder.info.features)  # what has no text need not be downloaded
    folder = Path(builder.data_dir)
    if folder.exists():
        raise _error(source, f"{folder} is not a whole data set; delete it and run: {_command(source)}")
    for leftover in sorted(folder.parent.glob(f"incomplete.*_{folder.name}")):
        # Not deleted here: another program may be writing it right now.
        say(f"{leftover} is half-prepared: unless another program is at it, delete it")
    say(f"{source}: downloading and preparing {builder.info.full_name} in {data_dir()}")
    say("(without a network, TFDS tries for about four minutes before it gives up)")
    try:
        # TFDS announces itself on the standard output, which belongs to the program.
        with contextlib.redirect_stdout(sys.stderr):
            config = tfds.download.DownloadConfig(try_download_gcs=False)
            builder.download_and_prepare(file_format=_FORMAT, download_config=config)
    except Exception as error:
        problem = _download_problem(error)
        if problem is None:
            raise
        raise _error(source, problem) from error


def _error(source: str, problem: str) -> ConfigError:
    return ConfigError(f"data.source={source!r}: {problem}")


def _command(source: str) -> str:
    return f"python -m train.prepare {source.partition('#')[0]}"


def _builder(source: str, adapt: Callable[[Any], Any] = lambda builder_class: builder_class) -> Any:
    """The `tfds.core.DatasetBuilder` of `source`, whether prepared or not, of the class that `adapt` makes of its."""
    match = _REFERENCE.fullmatch(source)
    if match is None:
        raise _error(source, "must be tfds:NAME, tfds:NAME/CONFIG or tfds:NAME/CONFIG:VERSION, then #KEY if need be")
    import tensorflow_datasets as tfds
    from google.protobuf import json_format

    name, config, version = match["name"], match["config"], match["version"]
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
        raise _error(source, f"there is no data set {name!r}; {hint}") from None
    except AssertionError as error:
        raise _error(source, _line(error)) from None
    except (json_format.ParseError, UnicodeDecodeError) as error:
        raise _error(source, f"dataset_info.json in {data_dir() / name} is damaged ({_line(error)})") from None


def _builder_class(name: str) -> Any:
    """Our own builder, else that of TFDS, else None."""
    import tensorflow_datasets as tfds

    # TFDS finds these by importing all its builders, and stops at the first that needs a package that is not there.
    import tensorflow_datasets.summarization
    import tensorflow_datasets.text

    from train.data.builders import BUILDERS

    if name in BUILDERS:
        return BUILDERS[name]
    try:
        return tfds.builder_cls(name)
    except tfds.core.DatasetNotFoundError:
        return None


def _known_names() -> set[str]:
    import tensorflow_datasets as tfds

    from train.data.builders import BUILDERS

    return {*BUILDERS, *tfds.list_builders(with_community_datasets=False)}


def _is_prepared(source: str, builder: Any) -> bool:
    """Whether the data set is there; raises `ConfigError` if it is, but not in a format that can be read."""
    if not (Path(builder.data_dir) / "dataset_info.json").exists():
        return False
    found = {file_format.value for file_format in builder.info.available_file_formats()}
    problem = f"is prepared in {builder.data_dir} as {' and '.join(sorted(found)) or 'nothing'}, not {_FORMAT}"
    if _FORMAT not in found:
        raise _error(source, f"{problem}; delete that folder and run: {_command(source)}")
    return True


def _text_key(source: str, features: Any) -> str:
    keys = _text_keys(source, features)
    _, hash_sign, key = source.partition("#")
    if hash_sign:
        require(key in keys, "data.source", source, f"there is no text feature {key!r}; {nearest(key, keys)}")
        return key
    if "text" in keys or len(keys) == 1:
        return "text" if "text" in keys else keys[0]
    choices = " or ".join(f"{source}#{key}" for key in keys)
    raise _error(source, f"has several text features; choose one: {choices}")


def _text_keys(source: str, features: Any) -> list[str]:
    import tensorflow_datasets as tfds

    keys = [key for key, feature in features.items() if isinstance(feature, tfds.features.Text)]
    require(bool(keys), "data.source", source, f"has no text feature, only {', '.join(features)}")
    return keys


def _read(source: str, split: str, examples: Any, key: str, start: int, stop: int) -> Iterator[Document]:
    for index, example in _fetch(source, split, examples, (key,), start, stop):
        text = decoded(source, split, index, key, example[key])
        yield Document(f"{split}/{index}", text, position=index + 1 - start)


def _fetch(
    source: str, split: str, examples: Any, keys: tuple[str, ...], start: int, stop: int
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Examples with their indices; `keys` are the features that must be there."""
    folder = Path(examples.dataset_info.data_dir)
    for first in range(start, stop, _BATCH):
        indices = range(first, min(first + _BATCH, stop))
        try:
            batch = examples.__getitems__(indices)
        except (RuntimeError, ValueError, IndexError) as error:
            raise _damaged(source, split, folder, _line(error)) from error
        for index, example in zip(indices, batch, strict=True):
            # What array_record finds no more in a file that is cut off between two blocks, it gives out as empty.
            if any(example[key] is None for key in keys):
                raise _damaged(source, split, folder, f"example {index} is empty")
            yield index, example


def decoded(source: str, split: str, index: int, key: str, text: bytes) -> str:
    """The feature `key` of example `index`. Raises `ConfigError` naming `data.source` where it is not UTF-8."""
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError as error:
        problem = f"{key!r} of example {index} of {split!r} is not UTF-8 (byte {error.start})"
        raise _error(source, problem) from None


def _damaged(source: str, split: str, folder: Path, why: str) -> ConfigError:
    problem = f"a file of {split!r} in {folder} is missing or damaged ({why})"
    return _error(source, f"{problem}; delete that folder and run: {_command(source)}")


def _download_problem(error: Exception) -> str | None:
    """What the user can do about `error`, or None."""
    import requests
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError

    again = "finished downloads are kept: run the same command again"
    network = (requests.RequestException, urllib.error.URLError, tfds.download.DownloadError, ConnectionError)
    if isinstance(error, (*network, TimeoutError)):
        request = getattr(error, "request", None)
        what = request.url if request is not None else _line(error)
        return f"could not download {what} ({type(error).__name__}); {again} with a network"
    # array_record's own errors have no number.
    full = isinstance(error, OSError) and error.errno == errno.ENOSPC
    if full or "No space left" in str(error) or "Not enough disk space" in str(error):
        return f"there is no space left in {data_dir()}; {again} with more"
    if isinstance(error, NonMatchingChecksumError):
        return f"{_line(error)}; run the same command again"
    if isinstance(error, tarfile.TarError | zipfile.BadZipFile | lzma.LZMAError | zlib.error | EOFError):
        downloads = data_dir() / "downloads"
        return f"a download is damaged ({_line(error)}); delete it in {downloads} and run the same command again"
    if isinstance(error, ImportError):
        return f"TFDS needs a package that is not installed to prepare it ({_line(error)})"
    if isinstance(error, AssertionError):  # TFDS's way to ask for files that the user has to collect by hand.
        return _line(error)
    return None


def _line(error: Exception) -> str:
    """The error's text as one line."""
    return " ".join(str(error).split())
