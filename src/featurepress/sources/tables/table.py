"""Images in the rows of tables: Parquet files, Arrow files, and Arrow streams as Hugging Face stores them."""

from __future__ import annotations

import bisect
import collections
import contextlib
import heapq
import os
import threading
from collections.abc import Generator, Iterable, Iterator

from featurepress.errors import ImageError, SourceError
from featurepress.settings import ImageSettings
from featurepress.sources.base import IN_SEQUENCE, require_unchanged
from featurepress.sources.containers import OpenReaders, files_behind, in_order
from featurepress.sources.files.folder import path_text
from featurepress.sources.lists.locations import LocationReader, location_of
from featurepress.sources.selection import TABLE_SUFFIXES
from featurepress.sources.tables.columns import (
    ImageColumn,
    ImageValue,
    Row,
    TableError,
    image_column,
    label_column,
)
from featurepress.sources.tables.rows import Table, open_table
from featurepress.specs import ImageRef, SourceSpec
from featurepress.storage.connection import scheme_of

_DIGITS = 16  # of a row's number in keys
_SUFFIXES = tuple(suffix.encode() for suffix in TABLE_SUFFIXES)


class TableSource:
    """Images in a column of tables.

    The uri of a row is ``table.parquet#row=17``, counted from 0. The column contains the bytes of the images, or
    structs of bytes and path as Hugging Face writes them; a path without bytes is read relative to the table. A
    table that cannot be opened, or is cut short, is listed with its problem; if it is the first one, it is refused.
    Rows have no names that could be included or excluded.

    Parameters
    ----------
    spec : SourceSpec
        `location`: a file, a glob or a folder of ``.parquet``, ``.arrow``, ``.feather`` or ``.ipc`` files, on disk
        or in a bucket. Options: ``image_column`` (by default the only one that can contain images),
        ``label_column``, and ``brings_label``.
    limits : ImageSettings, optional
        Limits for one image.

    Notes
    -----
    A listing reads metadata and labels. Sizes are exact in Arrow tables; in Parquet they are the means of the whole
    rows of a row group. A process keeps two tables open, and reads each forward; see `tables.parquet` for the cost.
    """

    reading = IN_SEQUENCE

    def __init__(self, spec: SourceSpec, limits: ImageSettings | None = None) -> None:
        self.skipped: collections.Counter[str] = collections.Counter()
        self._limits = limits or ImageSettings()
        self._files = files_behind(spec, self._limits)
        self._is_remote = bool(scheme_of(spec.location))
        self._column: str | None = spec.options.get("image_column")
        self._label: str | None = spec.options.get("label_column")
        self._brings_label = bool(spec.options.get("brings_label", False))
        self._base = os.fsencode(spec.base or os.getcwd())  # noqa: PTH109 - bytes
        root = b"/" if self._is_remote else self._folder_of(os.fsencode(spec.location))
        self.locations = LocationReader(spec.options, self._limits, root)

    # -- listing ---------------------------------------------------------------------------------------------

    def list(self, start_after: bytes = b"") -> Iterator[ImageRef]:
        """Yield the rows in byte order of their keys: the table's, and the row's number."""
        self.skipped.clear()
        nested: list[Iterable[ImageRef]] = []
        prefix = b""
        is_first = True
        for table in in_order(self._files):
            key = table.order + b"#"
            if table.problem is None and not table.order.lower().endswith(_SUFFIXES):
                if key > start_after:
                    self.skipped["not a table's name"] += 1
                continue
            if nested and not key.startswith(prefix):
                yield from heapq.merge(*nested, key=lambda ref: ref.order)
                nested.clear()
            if not nested:
                prefix = key
            # The keys of a table with the name of a row, "a.parquet#17.parquet", sort between those of "a.parquet".
            nested.append(self._rows(table, start_after, is_first=is_first))
            is_first = False
        yield from heapq.merge(*nested, key=lambda ref: ref.order)

    def _rows(self, table: ImageRef, start_after: bytes, *, is_first: bool) -> Generator[ImageRef]:
        """Yield the rows of a table, then a row with a problem if it cannot be opened or is cut short."""
        start = bisect.bisect_right(range(10**_DIGITS), start_after, key=lambda number: _key(table, number))
        if start == 10**_DIGITS:
            return
        row = start
        try:
            with contextlib.closing(self._opened(table)) as found:
                image, label = self._columns(found, table)
                for listed in found.rows(image, label, start):
                    yield self._reference(table, listed)
                    row += 1
        except (TableError, ImageError, SourceError) as error:
            if is_first and row == 0:
                raise _refused(table, error) from error
            if isinstance(error, TableError) and error.row is not None:
                row = error.row
            rest = self._reference(table, Row(row, 0, None, _problem(error)))
            if row == 0:
                rest = rest._replace(uri=table.uri, key=table.order + b"#")
            if rest.order > start_after:
                yield rest

    def _opened(self, table: ImageRef) -> Table:
        if table.problem is not None:
            raise TableError(table.problem)
        return open_table(self._files.open(table), is_remote=self._is_remote)

    def _columns(self, table: Table, ref: ImageRef) -> tuple[ImageColumn, int | None]:
        where = f"table '{ref.uri}'"
        label = label_column(table.schema, self._label, where) if self._label is not None else None
        return image_column(table.schema, self._column, where), label if self._brings_label else None

    def _reference(self, table: ImageRef, row: Row) -> ImageRef:
        return ImageRef(
            f"{table.uri}#row={row.number}",
            0,
            min(row.size, self._limits.max_bytes),  # a mean above the limit is no reason to refuse an image
            table.version,
            (row.label,) if self._brings_label else (),
            _key(table, row.number),
            row.problem,
        )

    # -- reading ---------------------------------------------------------------------------------------------

    def read(self, ref: ImageRef) -> bytes:
        """Read one row; consecutive rows are read in one pass."""
        table, number = _parse_key(ref)
        try:
            value = self._value(table, number)
        except TableError as error:
            require_unchanged(self._files, table)
            raise ImageError("read", f"damaged table: {error}") from None
        if value.data is not None:
            return value.data
        if not value.path:
            raise ImageError("read", "no image in this row")
        return self.locations.read(location_of(os.fsencode(value.path), self._folder_of(table.order)))

    def _value(self, table: ImageRef, number: int) -> ImageValue:
        name = (self._base, table.order, table.version, self._column)
        with _open_tables.using(name, lambda: self._reopened(table)) as kept, kept.lock:
            value = kept.table.read(kept.image, number, self._limits.max_bytes)
        if not self._is_remote:  # in a bucket, each request checks the etag
            require_unchanged(self._files, table)
        return value

    def _reopened(self, table: ImageRef) -> _OpenTable:
        now = require_unchanged(self._files, table)
        found = self._opened(now)
        try:
            return _OpenTable(found, self._columns(found, now)[0])
        except SourceError as error:
            found.close()
            raise ImageError("read", f"damaged table: {error}") from None

    def stat(self, ref: ImageRef) -> ImageRef:
        """Return the current reference; the row is read again only if the table has changed."""
        table, number = _parse_key(ref)
        now = self._files.stat(table)
        if now.problem is not None:
            return ref._replace(size=0, version="", problem=now.problem)
        if now.version == ref.version:
            return ref
        before = _key(table, number - 1) if number else table.order + b"#"
        with contextlib.closing(self._rows(now, before, is_first=False)) as rows:
            found = next(rows, None)
        if found is None or found.order != ref.order:
            return ref._replace(size=0, version=now.version, problem="vanished since listing")
        return ref._replace(size=found.size, version=found.version, problem=found.problem)

    def _folder_of(self, order: bytes) -> bytes:
        """Return what the paths in a table start from: a folder, or the url of the table."""
        return order if self._is_remote else os.path.join(self._base, os.path.dirname(order))  # noqa: PTH120 - bytes


class _OpenTable:
    """A table that is open for reading."""

    held_bytes = 0  # the number of open tables limits the memory

    def __init__(self, table: Table, image: ImageColumn) -> None:
        self.table, self.image, self.close = table, image, table.close
        self.lock = threading.Lock()


_open_tables: OpenReaders[_OpenTable] = OpenReaders(most=2, most_bytes=0)


def _key(table: ImageRef, number: int) -> bytes:
    return b"%s#%0*d" % (table.order, _DIGITS, number)


def _parse_key(ref: ImageRef) -> tuple[ImageRef, int]:
    """Return the table that contains an image (its size is not known), and the number of the row."""
    order, number = ref.order[: -_DIGITS - 1], int(ref.order[-_DIGITS:])
    return ImageRef(path_text(order), 0, 0, ref.version, key=order), number


def _problem(error: TableError | ImageError | SourceError) -> str:
    if isinstance(error, ImageError):
        return error.reason
    return f"damaged table: {error}" if isinstance(error, TableError) else str(error)


def _refused(table: ImageRef, error: TableError | ImageError | SourceError) -> SourceError:
    if isinstance(error, SourceError):
        return error
    reason = error.reason if isinstance(error, ImageError) else str(error)
    return SourceError(f"The table '{table.uri}' cannot be read: {reason}. Use a Parquet or an Arrow file.")
