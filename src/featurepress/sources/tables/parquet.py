"""Tables in Parquet files: a listing reads metadata and labels; images are decoded forward, some rows at a time."""

from __future__ import annotations

import bisect
import collections
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from featurepress.sources.base import too_many_bytes
from featurepress.sources.tables.columns import (
    TEXT_ROWS,
    ImageColumn,
    ImageValue,
    Row,
    TableError,
    texts,
    until_damage,
)

MAGIC = b"PAR1"
STEP_ROWS, STEP_BYTES = 64, 4 * 1024**2  # of the image column, decoded at once
_ERRORS = (pa.ArrowException, OSError, ValueError)
_STEPS_KEPT = 2  # for threads that read slightly out of order


class ParquetTable:
    """An open Parquet file, read in pieces of `ahead_bytes`. Raises TableError if it is not Parquet, or incomplete.

    Parquet can only be decoded from the beginning of a row group. Rows read in order cost their own bytes; going
    back, or far ahead, decodes all rows of the row group before the one requested. Memory: two steps of at most 64
    rows, and three or four pages of the writer's size: at least 1,024 rows by PyArrow, about 1 MB by others.
    """

    def __init__(self, file: BinaryIO, ahead_bytes: int = 1024**2) -> None:
        self._file = file
        try:
            self._parquet = pq.ParquetFile(
                file, buffer_size=ahead_bytes, pre_buffer=False, page_checksum_verification=True
            )
            self.schema: pa.Schema = self._parquet.schema_arrow
        except _ERRORS as error:
            raise TableError.of(error) from error
        self._metadata = self._parquet.metadata
        counts = [self._metadata.row_group(i).num_rows for i in range(self._metadata.num_row_groups)]
        self._first_rows = [0, *itertools.accumulate(counts)]
        if min(counts, default=0) < 0 or self._first_rows[-1] != self._metadata.num_rows:
            raise TableError("its metadata are inconsistent")
        self._group, self._at = -1, 0  # row group and row that are decoded next
        self._steps: Iterator[Any] = iter(())
        self._kept: collections.deque[tuple[int, pa.Array]] = collections.deque(maxlen=_STEPS_KEPT)
        # For each damaged row group: its first row that cannot be decoded, and why.
        self._broken: dict[int, tuple[int, TableError]] = {}

    def close(self) -> None:
        """Close the file."""
        self._steps = iter(())
        self._kept.clear()
        self._parquet.close()
        self._file.close()

    def rows(self, image: ImageColumn, label: int | None, start: int) -> Iterator[Row]:
        """Yield the rows from `start` on. Sizes are the means of whole rows; nulls are found by `read`."""
        for group, (first, end) in enumerate(itertools.pairwise(self._first_rows)):
            if end > start:
                row, size = max(start, first), self._mean_size(group)
                labels = enumerate(self._labels(group, label, row - first), row)
                yield from until_damage((Row(number, size, text) for number, text in labels), row, end)

    def _mean_size(self, group: int) -> int:
        # Of whole rows, because reading the damaged metadata of a column makes PyArrow abort the process.
        found = self._metadata.row_group(group)
        return max(0, int(found.total_byte_size)) // max(1, int(found.num_rows))

    def _labels(self, group: int, label: int | None, skip: int) -> Iterator[str | None]:
        n_rows = self._metadata.row_group(group).num_rows
        if label is None:
            yield from itertools.repeat(None, n_rows - skip)
            return
        n_found = 0
        for (found,) in self._texts(group, [label]):
            yield from found[max(0, skip - n_found) :]
            n_found += len(found)
        if n_found != n_rows:
            raise TableError("a column is cut short")

    def texts(self, indices: Sequence[int]) -> Iterator[tuple[int, Sequence[Sequence[str | None]]]]:
        """Yield columns as texts, some thousand rows at a time: the first row's number, and a list per column."""
        for group, row in enumerate(self._first_rows[:-1]):
            for found in self._texts(group, indices):
                yield row, found
                row += len(found[0])  # noqa: PLW2901 - the rows of a group follow one another

    def _texts(self, group: int, indices: Sequence[int]) -> Iterator[Sequence[Sequence[str | None]]]:
        names = [self.schema.names[index] for index in indices]
        try:
            for batch in self._decoded(group, names, TEXT_ROWS):
                yield [texts(batch.column(name)) for name in names]
        except _ERRORS as error:
            raise TableError.of(error) from error

    def _decoded(self, group: int, names: Sequence[str], n_rows: int) -> Iterator[pa.RecordBatch]:
        batches: Iterator[pa.RecordBatch] = self._parquet.iter_batches(
            batch_size=n_rows, row_groups=[group], columns=list(names), use_threads=False
        )
        return batches

    def read(self, image: ImageColumn, number: int, max_bytes: int) -> ImageValue:
        """Return the value of the image column in one row.

        Raises TableError if it cannot be decoded, and ImageError for an image above `max_bytes`.
        """
        array, i = self._find(image, number)
        if not array[i].is_valid:
            return ImageValue(None)
        if not image.is_struct:
            return ImageValue(_content(array[i], max_bytes))
        data = _content(array.field("bytes")[i], max_bytes)
        if data is not None or image.path_at < 0:
            return ImageValue(data)
        return ImageValue(None, array.field("path")[i].as_py())

    def _find(self, image: ImageColumn, number: int) -> tuple[pa.Array, int]:
        """Decode up to a row; return the decoded piece of the column that contains it, and the index in it."""
        for first, array in self._kept:
            if first <= number < first + len(array):
                return array, number - first
        if number >= self._first_rows[-1]:
            raise TableError("it has fewer rows than when it was listed")
        group = bisect.bisect_right(self._first_rows, number) - 1
        if group in self._broken and number >= self._broken[group][0]:
            raise self._broken[group][1]
        if group != self._group or number < self._at:
            self._begin(group, image)
        while number >= self._at:
            self._step(image)
        first, array = self._kept[-1]
        return array, number - first

    def _begin(self, group: int, image: ImageColumn) -> None:
        n_rows = max(1, min(STEP_ROWS, STEP_BYTES // max(1, self._mean_size(group))))
        self._kept.clear()
        self._group, self._at = group, self._first_rows[group]
        self._steps = self._decoded(group, [image.name], n_rows)

    def _step(self, image: ImageColumn) -> None:
        group, self._group = self._group, -1  # if the file cannot be reached now, the group is begun again
        try:
            array = next(self._steps).column(image.name)
        except StopIteration:
            raise self._broken_off(group, "a column is cut short") from None
        except _ERRORS as error:
            raise self._broken_off(group, str(TableError.of(error))) from error
        self._group = group
        self._kept.append((self._at, array))
        self._at += len(array)

    def _broken_off(self, group: int, reason: str) -> TableError:
        """Remember that no row from here on can be decoded: each try would begin at the start of the row group."""
        error = TableError(reason)
        self._broken[group] = (self._at, error)
        return error


def _content(value: Any, max_bytes: int) -> bytes | None:
    """Return the bytes of an Arrow scalar."""
    if not value.is_valid:
        return None
    buffer = value.as_buffer()
    if buffer.size > max_bytes:
        raise too_many_bytes(buffer.size, max_bytes)
    data: bytes = buffer.to_pybytes()
    return data
