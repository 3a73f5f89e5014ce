"""The entries of lists: lines of text, rows of CSV and TSV, and rows of tables."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.csv

from featurepress.errors import SourceError
from featurepress.sources.selection import TABLE_SUFFIXES
from featurepress.sources.tables.columns import TableError, label_column, uri_column
from featurepress.sources.tables.rows import open_table

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_MAX_LINE_BYTES = 64 * 1024
_BLOCK_BYTES = 1024**2  # of CSV that are parsed at once; the longest record
_BOM = b"\xef\xbb\xbf"
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")


class Entry(NamedTuple):
    """An entry of a list."""

    row: int  # the line of a text, from 1; otherwise the row, from 0
    uri: bytes  # as written in the list; empty if missing
    label: str | None = None


class Columns(NamedTuple):
    """The names of the columns that the user requested."""

    uri: str | None = None
    label: str | None = None


def is_text(name: str) -> bool:
    """Whether a list is a text of lines, by its name."""
    return not name.lower().endswith((*_DELIMITERS, *TABLE_SUFFIXES))


def location_in(name: str, row: int) -> str:
    """Return the position of an entry in a list, for messages."""
    return f"line {row}" if is_text(name) else f"row {row} (counted from 0)"


def read_entries(file: BinaryIO, name: str, columns: Columns, where: str, *, is_remote: bool) -> Iterator[Entry]:
    """Yield the entries of a list. The suffix of its name decides the format.

    The file is seekable, and remains open; if `is_remote`, each read of it is a request. `columns` are for CSV and
    tables, `where` names the list in errors. Raises SourceError if the file does not have this format or these
    columns.
    """
    if name.lower().endswith(TABLE_SUFFIXES):
        found = _rows(file, columns, where, is_remote=is_remote)
    elif is_text(name):
        if columns.uri is not None or columns.label is not None:
            flag = "--uri-column" if columns.uri is not None else "--label-column"
            raise SourceError(f"The {where} is lines of text and has no columns: {flag} is for CSV and tables.")
        found = _lines(file, where)
    else:
        found = _records(file, _DELIMITERS[name.lower()[-4:]], columns, where)
    for entry in found:
        if b"\0" in entry.uri:
            raise SourceError(f"The {where} cannot be read: a zero byte is in {location_in(name, entry.row)}.")
        yield entry


def _lines(file: BinaryIO, where: str) -> Iterator[Entry]:
    """Yield the lines that are neither blank nor a comment."""
    _refuse_utf_16(file, where)
    for number, line in enumerate(iter(lambda: file.readline(_MAX_LINE_BYTES + 1), b""), 1):
        if len(line) > _MAX_LINE_BYTES:
            raise SourceError(f"The {where} cannot be read: line {number} has over {_MAX_LINE_BYTES:,} bytes.")
        text = line.removeprefix(_BOM) if number == 1 else line
        text = text.removesuffix(b"\n").removesuffix(b"\r")
        if text and not text.isspace() and not text.startswith(b"# ") and text != b"#":
            yield Entry(number, text)


def _refuse_utf_16(file: BinaryIO, where: str) -> None:
    if file.read(2) in _UTF_16:
        raise SourceError(f"The {where} is in UTF-16. Save it as UTF-8.")
    file.seek(0)


# -- CSV -----------------------------------------------------------------------------------------------------


def _records(file: BinaryIO, delimiter: str, columns: Columns, where: str) -> Iterator[Entry]:
    """Yield the records of a CSV file, parsed block by block with all columns as bytes."""
    _refuse_utf_16(file, where)
    bad_rows: list[Any] = []
    try:
        with _opened(file, delimiter, bad_rows) as reader:
            names: list[str] = reader.schema.names
        schema = pa.schema([(name, pa.string()) for name in names])
        wanted = [names[uri_column(schema, columns.uri, where)]]
        if columns.label is not None:
            wanted.append(names[label_column(schema, columns.label, where)])
        file.seek(0)
        row = 0
        for batch in _opened(file, delimiter, bad_rows, wanted):
            uris = batch.column(wanted[0]).to_pylist()
            labels = batch.column(wanted[1]).to_pylist() if len(wanted) == 2 else [b""] * len(uris)
            for uri, label in zip(uris, labels, strict=True):
                yield Entry(row, uri, label.decode(errors="backslashreplace") or None)
                row += 1
    except UnicodeDecodeError as error:
        raise SourceError(f"The {where} is not in UTF-8: the names of its columns cannot be read.") from error
    except pa.ArrowInvalid as error:
        if "Empty CSV file" not in str(error):
            # The library's message shows the record, which may contain a secret.
            raise SourceError(f"The {where} is not valid CSV: {_reason(str(error), bad_rows)}.") from None


def _opened(file: BinaryIO, delimiter: str, bad_rows: list[Any], names: list[str] | None = None) -> Any:
    def remember(row: Any) -> str:
        bad_rows.append(row)
        return "error"

    return pa.csv.open_csv(
        pa.PythonFile(_Unclosed(file), "r"),
        read_options=pa.csv.ReadOptions(use_threads=False, block_size=_BLOCK_BYTES),
        parse_options=pa.csv.ParseOptions(
            delimiter=delimiter, newlines_in_values=True, invalid_row_handler=remember
        ),
        convert_options=pa.csv.ConvertOptions(
            column_types=dict.fromkeys(names or (), pa.binary()),
            include_columns=names,
            strings_can_be_null=False,
        ),
    )


class _Unclosed:
    """A file that stays open when the library closes it."""

    closed = False

    def __init__(self, file: BinaryIO) -> None:
        self.read, self.seek, self.tell = file.read, file.seek, file.tell

    def close(self) -> None:
        pass


def _reason(text: str, bad_rows: list[Any]) -> str:
    if bad_rows:
        bad = bad_rows[0]
        expected = f"{bad.actual_columns} columns, not {bad.expected_columns}"
        return f"record {bad.number} has {expected}; the header is record 1"
    if "straddl" in text:
        return f"a record is longer than {_BLOCK_BYTES:,} bytes, or a quote is not closed"
    return "it cannot be parsed"


# -- tables --------------------------------------------------------------------------------------------------


def _rows(file: BinaryIO, columns: Columns, where: str, *, is_remote: bool) -> Iterator[Entry]:
    try:
        table = open_table(file, is_remote=is_remote)
        indices = [uri_column(table.schema, columns.uri, where)]
        if columns.label is not None:
            indices.append(label_column(table.schema, columns.label, where))
        for first, found in table.texts(indices):
            labels = found[1] if len(found) == 2 else [None] * len(found[0])
            for row, (uri, label) in enumerate(zip(found[0], labels, strict=True), first):
                yield Entry(row, b"" if uri is None else uri.encode(), label)
    except TableError as error:
        raise SourceError(f"The {where} cannot be read: {error}.") from error
