"""Read tables in Arrow's IPC formats without loading whole record batches.

The message headers contain the position of each column's buffers, so a listing skips the images and a read fetches
one of them. `pyarrow.ipc` reads whole record batches, and a stream from its beginning: for one image of 50 kB in
1,000-row batches, it reads 50 MB of a file and 150 MB of a three-batch stream; this module reads 50 kB. A file is a
stream with a few bytes around it.

References
----------
Arrow Columnar Format, "Serialization and Interprocess Communication"; Message.fbs and Schema.fbs of apache/arrow.
"""

from __future__ import annotations

import bisect
import io
import itertools
from collections.abc import Iterator, Sequence
from typing import BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.ipc

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
from featurepress.sources.tables.ipc import (
    DICTIONARY,
    Column,
    Columns,
    Forward,
    Message,
    as_array,
    damage,
    image_sizes,
    is_valid,
    read_message,
    spans,
)

MAGIC = b"ARROW1"
_SCHEMA = 1
_MAX_PATH_BYTES = 1024**2


class ArrowTable:
    """An open IPC file or stream. Raises TableError if the file is not in this format, or is incomplete.

    An image of an uncompressed table costs its own bytes and a few more. A compressed buffer is decompressed from
    its beginning to the row, and from there on if rows are read in order. At most one image is in memory.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._size = file.seek(0, io.SEEK_END)
        self._batches: list[_Batch] = []
        self._dictionaries: list[_Dictionary] = []
        self._next_row = 0
        self._open: tuple[_Batch, Columns] | None = None
        self._data: Forward | None = None
        with damage():
            self._at = self._beginning()
            message = self._message(self._at)
            if message is None or message.kind != _SCHEMA:
                raise TableError("it does not begin with a schema")
            self.schema = self._read_schema(message)
            self._at = message.end

    def _beginning(self) -> int:
        if self._pread(0, len(MAGIC)) != MAGIC:
            return 0
        if self._pread(self._size - len(MAGIC), len(MAGIC)) != MAGIC:
            raise TableError("it is cut short")
        return 8

    def _read_schema(self, message: Message) -> pa.Schema:
        if message.header.scalar(0, "h"):
            raise TableError("it was written on a big-endian machine")
        self._dictionary_ids = [
            encoding.scalar(0, "q") if (encoding := field.table(4)) else None for field in message.header.tables(1)
        ]
        return pa.ipc.read_schema(pa.py_buffer(self._pread(message.at, message.body - message.at)))

    def close(self) -> None:
        """Close the file."""
        self._data = None
        self._file.close()

    def rows(self, image: ImageColumn, label: int | None, start: int) -> Iterator[Row]:
        """Yield the rows from `start` on; the images are not read. Sizes are exact."""
        for batch in self._from(start):
            row = max(start, batch.first_row)
            yield from until_damage(self._batch_rows(batch, image, label, row), row, batch.first_row + batch.n_rows)

    def _batch_rows(self, batch: _Batch, image: ImageColumn, label: int | None, start: int) -> Iterator[Row]:
        with damage():
            columns = self._columns(batch)
            sizes = image_sizes(columns, image)
        skip = start - batch.first_row
        for i, text in enumerate(self._labels(batch, columns, label, skip), skip):
            size = sizes[i]
            yield Row(batch.first_row + i, size or 0, text, "no image in this row" if size is None else None)

    def _labels(self, batch: _Batch, columns: Columns, label: int | None, skip: int) -> Iterator[str | None]:
        if label is None:
            yield from itertools.repeat(None, columns.n_rows - skip)
            return
        for (found,) in self._texts(batch, columns, [label], skip):
            yield from found

    def texts(self, indices: Sequence[int]) -> Iterator[tuple[int, Sequence[Sequence[str | None]]]]:
        """Yield columns as texts, some thousand rows at a time: the first row's number, and a list per column."""
        for batch in self._from(0):
            row = batch.first_row
            for found in self._texts(batch, self._columns(batch), indices, 0):
                yield row, found
                row += len(found[0])

    def _texts(
        self, batch: _Batch, columns: Columns, indices: Sequence[int], skip: int
    ) -> Iterator[Sequence[Sequence[str | None]]]:
        with damage():
            arrays = [self._array(batch, columns, index) for index in indices]
            for at in range(skip, columns.n_rows, TEXT_ROWS):
                yield [texts(array.slice(at, TEXT_ROWS)) for array in arrays]

    def _array(self, batch: _Batch, columns: Columns, index: int) -> pa.Array:
        """Return a whole column, which is not nested, as an Arrow array."""
        column, kind = columns[index], self.schema.types[index]
        if not pa.types.is_dictionary(kind):
            return as_array(kind, columns, column)
        indices = as_array(kind.index_type, columns, column)
        return pa.DictionaryArray.from_arrays(indices, self._dictionary(batch, index, kind.value_type))

    def _dictionary(self, batch: _Batch, index: int, kind: pa.DataType) -> pa.Array:
        """Return the dictionary of a column that applies to a batch."""
        pieces: list[pa.Array] = []
        for dictionary in reversed(self._dictionaries[: batch.n_dictionaries]):
            if dictionary.identity == self._dictionary_ids[index]:
                columns = self._columns(dictionary.batch, [kind])
                pieces.insert(0, as_array(kind, columns, columns[0]))
                if not dictionary.is_delta:
                    return pieces[0] if len(pieces) == 1 else pa.concat_arrays(pieces)
        raise TableError("a dictionary is missing")

    def read(self, image: ImageColumn, number: int, max_bytes: int) -> ImageValue:
        """Return the value of the image column in one row.

        Raises TableError if it cannot be read, and ImageError for an image above `max_bytes`.
        """
        with damage():
            batch = self._batch_of(number)
            if self._open is None or self._open[0] is not batch:
                self._open, self._data = (batch, self._columns(batch)), None
            columns, row = self._open[1], number - batch.first_row
            column = columns[image.at]
            if not is_valid(columns, column, row):
                return ImageValue(None)
            if not image.is_struct:
                return ImageValue(self._value(columns, column, row, max_bytes))
            data = self._value(columns, column.children[image.bytes_at], row, max_bytes)
            if data is not None or image.path_at < 0:
                return ImageValue(data)
            path = self._value(columns, column.children[image.path_at], row, _MAX_PATH_BYTES)
            return ImageValue(None, None if path is None else path.decode())

    def _value(self, columns: Columns, column: Column, row: int, max_bytes: int) -> bytes | None:
        if not is_valid(columns, column, row):
            return None
        ((buffer, start, n_bytes),) = spans(columns, column, row, row + 1)
        if n_bytes > max_bytes:
            raise too_many_bytes(n_bytes, max_bytes)
        if buffer == column.buffers[1] or not columns.is_compressed(buffer):
            return columns.slice(buffer, start, n_bytes)
        if self._data is None or self._data.buffer != buffer or start < self._data.at:
            self._data = columns.forward(buffer)
        return self._data.read(start, n_bytes)

    def _from(self, start: int) -> Iterator[_Batch]:
        """Yield the batches that end after a row."""
        for number in itertools.count():
            try:
                with damage():
                    if number == len(self._batches) and not self._find_next():
                        return
            except TableError as error:
                raise TableError(str(error), self._next_row) from error
            batch = self._batches[number]
            if batch.first_row + batch.n_rows > start:
                yield batch

    def _batch_of(self, number: int) -> _Batch:
        while number >= self._next_row:
            if not self._find_next():
                raise TableError("it has fewer rows than when it was listed")
        return self._batches[bisect.bisect_right(self._batches, number, key=lambda batch: batch.first_row) - 1]

    def _find_next(self) -> bool:
        """Find the next record batch with rows, and the dictionaries before it; return False if there is none."""
        while (message := self._message(self._at)) is not None:
            header = message.batch
            if header is not None:
                n_rows = header.scalar(0, "q")
                if not 0 <= n_rows <= self._size:
                    raise TableError("a batch has more rows than the file has bytes")
                batch = _Batch(self._next_row, n_rows, message.at, len(self._dictionaries))
                if message.kind == DICTIONARY:
                    identity, is_delta = message.header.scalar(0, "q"), message.header.scalar(2, "b")
                    self._dictionaries.append(_Dictionary(identity, bool(is_delta), batch))
                elif batch.n_rows > 0:
                    self._batches.append(batch)
                    self._next_row += batch.n_rows
            self._at = message.end
            if self._batches and self._batches[-1].at == message.at:
                return True
        return False

    def _columns(self, batch: _Batch, kinds: Sequence[pa.DataType] = ()) -> Columns:
        with damage():
            message = self._message(batch.at)
            if message is None:
                raise TableError("it is cut short")
            return Columns(self._pread, message, kinds or self.schema.types)

    def _message(self, at: int) -> Message | None:
        return read_message(self._pread, at, self._size)

    def _pread(self, at: int, n_bytes: int) -> bytes:
        self._file.seek(max(0, at))
        data = self._file.read(n_bytes)
        if len(data) != n_bytes:
            raise TableError("it is cut short")
        return data


class _Batch(NamedTuple):
    """A record batch: its rows, its position, and the number of dictionaries before it."""

    first_row: int
    n_rows: int
    at: int
    n_dictionaries: int


class _Dictionary(NamedTuple):
    identity: int
    is_delta: bool
    batch: _Batch
