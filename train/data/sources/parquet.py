"""Parquet files as a source, a document a row: `parquet:GLOB[#COLUMN]`. Needs the extra `[parquet]`."""

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mom_jax.fields import ConfigError, nearest, require
from train.data.documents import Item, Part, Source
from train.data.sources.columns import choose, rows, text_columns
from train.data.sources.files import PART, Files, matching

# Rows that are decoded at once; and bytes of a column that are read at once, however large its row groups are.
_ROWS, _BUFFER = 1000, 2**20


def open_parquet(source: str) -> Source:
    """Opens `parquet:GLOB` or `parquet:GLOB#COLUMN`; COLUMN is by default `text`, or else the only one with texts.

    A part is some row groups of a file, of about 16 MB of text in all; its size and the documents' positions are bytes.
    Raises `ConfigError` naming `data.source` where no file matches, one is no Parquet file, or has no such column, and
    where pyarrow is not installed.
    """
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        need = "needs pyarrow, which is not installed: pip install pyarrow (the extra 'parquet')"
        raise ConfigError(f"data.source={source!r}: {need}") from None
    files = Files(source)
    found = matching(source, source.removeprefix("parquet:").partition("#")[0], "parquet:FOLDER/**/*.parquet")
    column, parts = "", list[Part]()
    for name, path in found:
        with _opened(files, path) as file:
            names = text_columns(file.schema_arrow)
            if not column:
                column = choose(source, names)
            require(column in names, "data.source", source, f"{path} has no text column {column!r}; {_known(names)}")
            parts += _parts(files, name, path, column, file.metadata)
    require(bool(parts), "data.source", source, "has no rows")
    return Source(source, tuple(parts), {"source": source, "column": column, **files.fingerprint(found)})


def _known(names: list[str]) -> str:
    return nearest("text", names) if names else "it has none"


@contextlib.contextmanager
def _opened(files: Files, path: Path) -> Iterator[Any]:
    """A `pyarrow.parquet.ParquetFile`; whatever goes wrong with it within is complained of."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path, buffer_size=_BUFFER, pre_buffer=False) as file:
            yield file
    except (OSError, pyarrow.ArrowException) as error:
        raise files.error(f"{path} cannot be read as Parquet ({' '.join(str(error).split())})") from None


def _parts(files: Files, name: str, path: Path, column: str, metadata: Any) -> Iterator[Part]:
    """Row groups of a file, put together to about `PART` bytes of the column."""
    groups: list[int] = []
    start = stop = size = 0
    for index in range(metadata.num_row_groups):
        group = metadata.row_group(index)
        groups.append(index)
        stop += group.num_rows
        size += _bytes(group, column)
        last = index + 1 == metadata.num_row_groups
        if (size >= PART or last) and stop > start:
            read = functools.partial(_read, files, name, path, column, tuple(groups), start, stop, size)
            yield Part(f"{name}[{start}:{stop}]", size, read)
            groups, start, size = [], stop, 0


def _bytes(group: Any, column: str) -> int:
    chunks = (group.column(i) for i in range(group.num_columns))
    return max(1, sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema == column))


def _read(
    files: Files, name: str, path: Path, column: str, groups: tuple[int, ...], start: int, stop: int, size: int
) -> Iterator[Item]:
    number = start
    with _opened(files, path) as file:
        for batch in file.iter_batches(_ROWS, row_groups=list(groups), columns=[column]):
            for item in rows(files.source, name, number, batch.column(0)):
                number += 1
                yield item._replace(position=size * (number - start) // (stop - start))
    if number != stop:
        raise files.error(f"{path} has {number - start} rows where it had {stop - start}")
