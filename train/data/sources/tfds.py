"""Documents of TFDS data sets, prepared as array_record: `tfds:NAME[/CONFIG][:VERSION][#KEY]`.

TFDS takes more than half a second to import, so that it is imported where it is needed only.
"""

import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mom_jax.fields import ConfigError, require
from train.data.documents import NOT_UTF8, SIDES, Broken, Document, Item, Part, Source
from train.data.sources.columns import choose
from train.data.sources.tfds_builder import FORMAT, one_line, prepare_command, prepared_builder, refusal, text_keys

EXAMPLES_PER_PART = 10_000


# So many examples are fetched at once: 44,000 short ones a second on two cores, against 1,600 one by one.
_BATCH = 1000


def open_tfds(source: str) -> Source:
    """Opens a data set that `download_tfds` or TFDS prepared; downloads nothing.

    A document is the text feature KEY of an example, by default `text` or else the only one. Only the splits `train`
    and `validation` are read; without the second, the side of a document is left open. A part has at most 10,000
    examples; its size and the documents' positions count them. Raises `ConfigError` naming `data.source` if the data
    set is unknown, not prepared, prepared in another format, damaged, or has no such feature.
    """
    builder = prepared_builder(source, f"run: {prepare_command(source)}")
    key = _text_key(source, builder.info.features)
    splits = {side: builder.info.splits[side] for side in SIDES if side in builder.info.splits}
    require("train" in splits, "data.source", source, f"has no split 'train', only {', '.join(builder.info.splits)}")
    parts = []
    for split, info in splits.items():
        examples = builder.as_data_source(split, file_format=FORMAT)
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


def read_examples(source: str, builder: Any, split: str, limit: int = 0) -> Iterator[dict[str, Any]]:
    """The examples of a split as TFDS gives them (texts are bytes), in its order: by the hash of their keys. limit: at
    most so many; 0 for all. Raises `ConfigError` naming `data.source` for a split that is not there or is damaged."""
    splits = builder.info.splits
    require(split in splits, "data.source", source, f"has no split {split!r}, only {', '.join(splits)}")
    count = splits[split].num_examples
    examples = builder.as_data_source(split, file_format=FORMAT)
    found = _fetch(source, split, examples, tuple(builder.info.features), 0, min(count, limit or count))
    return (example for _, example in found)


def _identities(source: str, split: str, folder: Path, files: list[Path]) -> list[list[Any]]:
    """Name, size in bytes and time of each file of a split."""
    outside = next((file for file in files if Path(os.path.normpath(file)).parent != folder), None)
    if outside is not None:
        raise _damaged(source, split, folder, f"dataset_info.json names {outside}, which lies elsewhere")
    try:
        stats = [(file.name, file.stat()) for file in files]
    except OSError as error:
        raise _damaged(source, split, folder, error.strerror or str(error)) from None
    return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]


def _text_key(source: str, features: Any) -> str:
    return choose(source, text_keys(source, features), "feature")


def _read(source: str, split: str, examples: Any, key: str, start: int, stop: int) -> Iterator[Item]:
    for index, example in _fetch(source, split, examples, (key,), start, stop):
        name, position = f"{split}/{index}", index + 1 - start
        try:
            text = decoded(source, split, index, key, example[key])
        except ConfigError as error:
            yield Broken(name, NOT_UTF8, str(error), position)
        else:
            yield Document(name, text, position=position)


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
            raise _damaged(source, split, folder, one_line(error)) from error
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
        raise refusal(source, problem) from None


def _damaged(source: str, split: str, folder: Path, why: str) -> ConfigError:
    problem = f"a file of {split!r} in {folder} is missing or damaged ({why})"
    return refusal(source, f"{problem}; delete that folder and run: {prepare_command(source)}")
