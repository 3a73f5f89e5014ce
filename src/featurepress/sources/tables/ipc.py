"""The messages of Arrow's IPC formats: their headers, and the positions of a column's values in their bodies."""

from __future__ import annotations

import contextlib
import io
import itertools
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import pyarrow as pa
from pyarrow import BaseExtensionType, types

from featurepress.sources.tables.columns import ImageColumn, TableError

DICTIONARY, BATCH = 2, 3  # kinds of messages
_CONTINUED = b"\xff\xff\xff\xff"
_CODECS = ("lz4", "zstd")  # CompressionType
_INLINE_BYTES = 12  # values of this size or less are stored in the view itself
_SKIP_BYTES = 1024**2
_MAX_BYTES = 1024**3  # of a buffer that is decompressed whole: offsets and labels

Pread = Callable[[int, int], bytes]  # (position, number of bytes)
Buffer = tuple[int, int]  # offset in a body, number of bytes


# -- headers -------------------------------------------------------------------------------------------------


class Flat:
    """A table in a flatbuffer."""

    def __init__(self, data: bytes, at: int) -> None:
        self._data, self._at = data, at
        self._slots = at - self._get("i", at)

    def _get(self, code: str, at: int) -> int:
        if at < 0:
            raise TableError("a message's header is broken")
        value: int = struct.unpack_from(f"<{code}", self._data, at)[0]
        return value

    def _position(self, slot: int) -> int:
        """Return the position of a field; 0 if it is absent."""
        at = 4 + 2 * slot
        offset = self._get("H", self._slots + at) if at < self._get("H", self._slots) else 0
        return self._at + offset if offset else 0

    def scalar(self, slot: int, code: str) -> int:
        """Return a number; the default of all these fields is 0."""
        at = self._position(slot)
        return self._get(code, at) if at else 0

    def table(self, slot: int) -> Flat | None:
        """Return a nested table."""
        at = self._position(slot)
        return Flat(self._data, at + self._get("I", at)) if at else None

    def tables(self, slot: int) -> Iterator[Flat]:
        """Yield the tables of a vector."""
        start, _ = self._vector(slot)
        for i, (offset,) in enumerate(self.structs(slot, "I")):
            yield Flat(self._data, start + 4 * i + offset)

    def structs(self, slot: int, code: str) -> Iterator[tuple[int, ...]]:
        """Yield the numbers of each item of a vector."""
        start, n = self._vector(slot)
        yield from struct.iter_unpack(f"<{code}", self._data[start : start + n * struct.calcsize(f"<{code}")])

    def _vector(self, slot: int) -> tuple[int, int]:
        at = self._position(slot)
        if not at:
            return 0, 0
        start = at + self._get("I", at)
        return start + 4, self._get("I", start)


class Message(NamedTuple):
    """A message: its kind and header, its position, and the beginning and end of its body."""

    kind: int
    header: Flat
    at: int
    body: int
    end: int

    @property
    def batch(self) -> Flat | None:
        """The header of the record batch: the message itself, or the one inside a dictionary."""
        if self.kind == DICTIONARY:
            return self.header.table(1)
        return self.header if self.kind == BATCH else None


def read_message(pread: Pread, at: int, size: int) -> Message | None:
    """Read the header of the message at a position of a file of `size` bytes; None at the end."""
    if at == size:
        return None  # a stream may end without an end mark
    prefix = pread(at, 8)
    start = 8 if prefix[:4] == _CONTINUED else 4  # before version 0.15, a message had no mark
    n_bytes = int.from_bytes(prefix[start - 4 : start], "little", signed=True)
    if n_bytes == 0:
        return None
    body = at + start + n_bytes
    if n_bytes < 0 or body > size:
        raise TableError("a message is longer than the file")
    data = pread(at + start, n_bytes)
    root = Flat(data, int.from_bytes(data[:4], "little"))
    header, end = root.table(2), body + root.scalar(3, "q")
    if header is None or not body <= end <= size:
        raise TableError("it is cut short")
    return Message(root.scalar(1, "B"), header, at, body, end)


@contextlib.contextmanager
def damage() -> Iterator[None]:
    """Convert the errors that broken bytes cause into TableError."""
    try:
        yield
    except (struct.error, ValueError, IndexError, OverflowError, OSError, pa.ArrowException) as error:
        raise TableError.of(error) from error


# -- columns -------------------------------------------------------------------------------------------------


class Column(NamedTuple):
    """A column of a batch, or a child of one: its type, and the positions of its buffers."""

    kind: Any
    length: int
    null_count: int
    buffers: list[Buffer]
    children: list[Column]


class Columns:
    """The columns of a record batch or a dictionary, of these types; buffers are read on demand."""

    def __init__(self, pread: Pread, message: Message, kinds: Sequence[Any]) -> None:
        header = message.batch
        if header is None:
            raise TableError("a record batch is missing")
        self._pread, self._body, self._size = pread, message.body, message.end - message.body
        self._kept: dict[Buffer, bytes] = {}
        self.n_rows = header.scalar(0, "q")
        compression = header.table(3)
        self.codec = None if compression is None else _CODECS[compression.scalar(0, "b")]
        self._nodes, self._buffers = header.structs(1, "qq"), header.structs(2, "qq")
        self._n_view_buffers = header.structs(4, "q")
        try:
            self._columns = [self._take(kind) for kind in kinds]
        except StopIteration:
            raise TableError("a batch has fewer columns than the table") from None
        if any(column.length != self.n_rows for column in self._columns):
            raise TableError("a batch has columns of several lengths")

    def __getitem__(self, index: int) -> Column:
        return self._columns[index]

    def _take(self, kind: Any) -> Column:
        """Assign the next nodes and buffers to a column; they are in depth-first order."""
        if isinstance(kind, BaseExtensionType):
            kind = kind.storage_type
        if types.is_dictionary(kind):
            kind = kind.index_type
        length, null_count = next(self._nodes)
        n_buffers = kind.num_buffers - types.is_union(kind)
        if types.is_null(kind) or types.is_run_end_encoded(kind):
            n_buffers = 0
        if is_view(kind):
            n_buffers += next(self._n_view_buffers)[0]
        buffers = [cast(Buffer, next(self._buffers)) for _ in range(n_buffers)]
        children = [self._take(kind.field(i).type) for i in range(kind.num_fields)]
        if types.is_struct(kind) and any(child.length != length for child in children):
            raise TableError("a struct has children of another length")
        return Column(kind, length, null_count, buffers, children)

    def where(self, buffer: Buffer) -> tuple[int, int, int]:
        """Return a buffer's position in the file, its bytes there, and its bytes decompressed."""
        offset, n_bytes = buffer
        if offset < 0 or n_bytes < 0 or offset + n_bytes > self._size:
            raise TableError("a buffer is outside its batch")
        at = self._body + offset
        if self.codec is None or not n_bytes:
            return at, n_bytes, n_bytes
        full = int.from_bytes(self._pread(at, 8), "little", signed=True)
        return at + 8, n_bytes - 8, n_bytes - 8 if full == -1 else full

    def is_compressed(self, buffer: Buffer) -> bool:
        """Whether a buffer is compressed; a compressed batch may also contain others."""
        return self.codec is not None and buffer[1] > 0 and self._pread(self._body + buffer[0], 8) != b"\xff" * 8

    def slice(self, buffer: Buffer, start: int, n_bytes: int) -> bytes:
        """Read a piece of a buffer. A compressed buffer is kept whole in memory, so this is for small ones."""
        at, _, full = self.where(buffer)
        if start < 0 or n_bytes < 0 or start + n_bytes > full:
            raise TableError("a value is outside its buffer")
        if self.is_compressed(buffer):
            return self.bytes(buffer)[start : start + n_bytes]
        return self._pread(at + start, n_bytes)

    def bytes(self, buffer: Buffer) -> bytes:
        """Return a whole buffer, decompressed."""
        at, n_bytes, full = self.where(buffer)
        if not self.is_compressed(buffer):
            return self._pread(at, n_bytes)
        if not 0 <= full <= _MAX_BYTES:
            raise TableError("a buffer is too large")
        if buffer not in self._kept:
            packed = self._pread(at, n_bytes)
            self._kept[buffer] = pa.Codec(self.codec).decompress(packed, decompressed_size=full, asbytes=True)
        return self._kept[buffer]

    def forward(self, buffer: Buffer) -> Forward:
        """Return a forward reader of a compressed buffer."""
        at, n_bytes, _ = self.where(buffer)
        return Forward(io.BufferedReader(_Section(self._pread, at, n_bytes), _SKIP_BYTES), buffer, self.codec or "")


class Forward:
    """A compressed buffer, decompressed piece by piece from its beginning."""

    def __init__(self, file: io.BufferedReader, buffer: Buffer, codec: str) -> None:
        self.buffer, self.at = buffer, 0
        self._stream = pa.CompressedInputStream(pa.PythonFile(file, "r"), codec)

    def read(self, start: int, n_bytes: int) -> bytes:
        """Read bytes at `start`, which must not be before the end of the previous read."""
        while self.at < start:
            self._take(min(_SKIP_BYTES, start - self.at))
        return self._take(n_bytes)

    def _take(self, n_bytes: int) -> bytes:
        data: bytes = self._stream.read(n_bytes)
        self.at += len(data)
        if len(data) != n_bytes:
            raise TableError("a compressed buffer is cut short")
        return data


class _Section(io.RawIOBase):
    """A range of bytes of a file, as a file."""

    def __init__(self, pread: Pread, at: int, n_bytes: int) -> None:
        self._pread, self._at, self._end = pread, at, at + n_bytes

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        n_bytes = min(len(buffer), self._end - self._at)
        buffer[:n_bytes] = self._pread(self._at, n_bytes)
        self._at += n_bytes
        return n_bytes


# -- values --------------------------------------------------------------------------------------------------


def is_view(kind: Any) -> bool:
    """Whether a type stores its values in several buffers."""
    return bool(types.is_binary_view(kind) or types.is_string_view(kind))


def spans(columns: Columns, column: Column, first: int, end: int) -> list[tuple[Buffer, int, int]]:
    """Return the positions of binary or text values of some rows: (buffer, start, number of bytes)."""
    if first >= end:
        return []
    if is_view(column.kind):
        return _views(columns, column, first, end)
    if types.is_fixed_size_binary(column.kind):
        width = column.kind.byte_width
        if end * width > columns.where(column.buffers[1])[2]:
            raise TableError("a value is outside its buffer")
        return [(column.buffers[1], row * width, width) for row in range(first, end)]
    is_large = types.is_large_binary(column.kind) or types.is_large_string(column.kind)
    step = 8 if is_large else 4
    raw = columns.slice(column.buffers[1], first * step, (end + 1 - first) * step)
    offsets = struct.unpack(f"<{len(raw) // step}{'q' if is_large else 'i'}", raw)
    pairs = list(itertools.pairwise(offsets))
    if offsets[0] < 0 or any(one > other for one, other in pairs):
        raise TableError("offsets are not in order")
    return [(column.buffers[2], one, other - one) for one, other in pairs]


def _views(columns: Columns, column: Column, first: int, end: int) -> list[tuple[Buffer, int, int]]:
    raw = columns.slice(column.buffers[1], first * 16, (end - first) * 16)
    found = []
    for row, (n_bytes, _, number, offset) in enumerate(struct.iter_unpack("<iIii", raw), first):
        if 0 <= n_bytes <= _INLINE_BYTES:
            found.append((column.buffers[1], row * 16 + 4, n_bytes))
        elif n_bytes < 0 or offset < 0 or not 0 <= number < len(column.buffers) - 2:
            raise TableError("a view is outside its buffers")
        else:
            found.append((column.buffers[2 + number], offset, n_bytes))
    return found


def is_valid(columns: Columns, column: Column, row: int) -> bool:
    """Whether a value is not null."""
    return not column.null_count or bool(columns.slice(column.buffers[0], row >> 3, 1)[0] >> (row & 7) & 1)


def image_sizes(columns: Columns, image: ImageColumn) -> list[int | None]:
    """Return the size of each image of a batch; None if there is none, 0 if there is only a path."""
    column = columns[image.at]
    if not image.is_struct:
        return _sizes(columns, column)
    sizes = _sizes(columns, column.children[image.bytes_at])
    if image.path_at >= 0 and None in sizes:
        has_path = _validity(columns, column.children[image.path_at])
        sizes = [0 if size is None and valid else size for size, valid in zip(sizes, has_path, strict=True)]
    return [size if valid else None for size, valid in zip(sizes, _validity(columns, column), strict=True)]


def _sizes(columns: Columns, column: Column) -> list[int | None]:
    sizes = [span[2] for span in spans(columns, column, 0, column.length)]
    return [size if valid else None for size, valid in zip(sizes, _validity(columns, column), strict=True)]


def _validity(columns: Columns, column: Column) -> list[bool]:
    """Return whether each value of a column is not null."""
    if not column.null_count:
        return [True] * column.length
    bits = columns.bytes(column.buffers[0])
    return [bool(bits[i >> 3] >> (i & 7) & 1) for i in range(column.length)]


def as_array(kind: Any, columns: Columns, column: Column) -> Any:
    """Return a whole column that is not nested as an Arrow array."""
    if not column.length or pa.types.is_null(kind):
        return pa.nulls(column.length, kind)
    validity = pa.py_buffer(columns.bytes(column.buffers[0])) if column.null_count else None
    buffers = [pa.py_buffer(columns.bytes(buffer)) for buffer in column.buffers[1:]]
    array = pa.Array.from_buffers(kind, column.length, [validity, *buffers], column.null_count)
    array.validate(full=True)  # else Arrow would follow wrong offsets to any address
    return array
