"""Open a table; its first bytes decide the format."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import BinaryIO, Protocol

import pyarrow as pa

from featurepress.sources.tables import arrow, parquet
from featurepress.sources.tables.columns import ImageColumn, ImageValue, Row, TableError

AHEAD_BYTES = {True: 8 * 1024**2, False: 1024**2}  # read at once, if a read is a request and if not


class Table(Protocol):
    """An open table: rows for a listing, and single images. Not thread-safe."""

    schema: pa.Schema

    def rows(self, image: ImageColumn, label: int | None, start: int) -> Iterator[Row]:
        """Yield the rows from `start` on, without reading the images.

        Raises TableError if the table is cut short, so that the number of missing rows is unknown.
        """

    def texts(self, indices: Sequence[int]) -> Iterator[tuple[int, Sequence[Sequence[str | None]]]]:
        """Yield columns as texts, some thousand rows at a time: the first row's number, and a list per column."""

    def read(self, image: ImageColumn, number: int, max_bytes: int) -> ImageValue:
        """Return the value of the image column in one row.

        Raises TableError if it cannot be read, and ImageError for an image above `max_bytes`.
        """

    def close(self) -> None:
        """Close the file."""


def open_table(file: BinaryIO, *, is_remote: bool = False) -> Table:
    """Open a table. The file is seekable, and closed with the table; if `is_remote`, each read of it is a request.

    Raises TableError, and closes the file, if it is neither Parquet nor Arrow, or is damaged.
    """
    try:
        with contextlib.ExitStack() as undo:
            undo.callback(file.close)
            table = _table_in(file, is_remote)
            _ = table.schema.names
            undo.pop_all()
    except UnicodeDecodeError:
        raise TableError("the names of its columns are not UTF-8") from None
    return table


def _table_in(file: BinaryIO, is_remote: bool) -> Table:
    beginning = file.read(len(arrow.MAGIC))
    if not beginning:
        raise TableError("it is empty")
    if beginning.startswith(parquet.MAGIC):
        return parquet.ParquetTable(file, AHEAD_BYTES[is_remote])
    if beginning == arrow.MAGIC or beginning[:4] == b"\xff" * 4:
        return arrow.ArrowTable(file)
    if beginning.startswith(b"FEA1"):
        raise TableError("it is Feather version 1; write it again as version 2 or Parquet")
    raise TableError("it is neither Parquet nor Arrow")
