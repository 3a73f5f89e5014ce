"""Open a table; its first bytes decide the format."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, BinaryIO, Protocol

from featurepress.sources.tables import arrow, parquet
from featurepress.sources.tables.columns import ImageColumn, Picture, Row, TableError

if TYPE_CHECKING:
    import pyarrow as pa

AHEAD_BYTES = {True: 8 * 1024**2, False: 1024**2}  # read at once, by whether a read is a request


class Table(Protocol):
    """A table that is open: rows for a listing, and one image after the other. Not safe from several threads."""

    schema: pa.Schema

    def rows(self, image: ImageColumn, label: int | None, start: int) -> Iterator[Row]:
        """Yield the rows from `start` on, without reading the images.

        Raises TableError where the table breaks off and nobody knows how many rows are missing.
        """

    def texts(self, indices: Sequence[int]) -> Iterator[tuple[int, Sequence[Sequence[str | None]]]]:
        """Yield some columns as texts, a few thousand rows at once: the first row's number, and a list a column."""

    def read(self, image: ImageColumn, number: int, max_bytes: int) -> Picture:
        """Return what the image column holds in one row.

        Raises TableError where it cannot be read, and ImageError for an image above `max_bytes`.
        """

    def close(self) -> None:
        """Close the file."""


def open_table(file: BinaryIO, *, is_remote: bool = False) -> Table:
    """Open a table.

    Parameters
    ----------
    file : BinaryIO
        Seekable; closed with the table, and at once if it is none.
    is_remote : bool
        Whether each read of the file is a request.

    Raises
    ------
    TableError
        It is neither Parquet nor Arrow, or damaged beyond use.
    """
    try:
        beginning = file.read(len(arrow.MAGIC))
        if not beginning:
            raise TableError("it is empty")
        table = _opened(file, beginning, is_remote=is_remote)
        _ = table.schema.names
    except UnicodeDecodeError:
        file.close()
        raise TableError("the names of its columns are no UTF-8") from None
    except BaseException:
        file.close()
        raise
    return table


def _opened(file: BinaryIO, beginning: bytes, *, is_remote: bool) -> Table:
    if beginning.startswith(parquet.MAGIC):
        return parquet.ParquetTable(file, AHEAD_BYTES[is_remote])
    if beginning == arrow.MAGIC or beginning[:4] == b"\xff" * 4:
        return arrow.ArrowTable(file)
    if beginning.startswith(b"FEA1"):
        raise TableError("it is Feather of version 1; write it again as version 2 or Parquet")
    raise TableError("it is neither Parquet nor Arrow")
