"""The columns of tables: which contain images, labels and uris, and their values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import pyarrow as pa
from pyarrow import BaseExtensionType, types

from featurepress.errors import SourceError
from featurepress.settings import nearest

URI_COLUMNS = ("uri", "url", "path", "image", "file_name", "filename")
TEXT_ROWS = 8192  # of text columns that are in memory at once
_MAX_NAMED, _MAX_TYPE_CHARACTERS = 30, 60
_IMAGE_TYPES = "binary, large_binary, binary_view, fixed_size_binary, or struct<bytes: binary, path: string>"


class TableError(Exception):
    """A table, or a part of one, cannot be read; `row` is the first that cannot be listed, if it is cut short."""

    def __init__(self, reason: str, row: int | None = None) -> None:
        super().__init__(reason)
        self.row = row

    @classmethod
    def of(cls, error: BaseException) -> TableError:
        """Return the error of a library, in one short line."""
        return cls(" ".join(str(error).split())[:200] or type(error).__name__)


class Row(NamedTuple):
    """A row of a table, for the listing."""

    number: int  # from 0
    size: int  # bytes of its image, exact or estimated
    label: str | None
    problem: str | None = None  # why the image cannot be read


class ImageValue(NamedTuple):
    """The value of the image column in a row: the bytes, the path of a file, or neither."""

    data: bytes | None
    path: str | None = None


class ImageColumn(NamedTuple):
    """The column with the images: its index, its name, and the indices of a struct's children (-1 if absent)."""

    at: int
    name: str
    bytes_at: int = -1
    path_at: int = -1

    @property
    def is_struct(self) -> bool:
        """Whether it is a struct of bytes and path, as Hugging Face writes them."""
        return self.bytes_at >= 0


def image_column(schema: pa.Schema, name: str | None, where: str) -> ImageColumn:
    """Find the column with the images: the one called `name`, or the only one that can contain images.

    Raises SourceError, which names the table by `where`, if there is no such column, or more than one, or if its
    type cannot contain images.
    """
    if name is not None:
        index = _find(schema, name, where, "--image-column")
        if (column := _as_images(index, schema.field(index))) is not None:
            return column
        advice = (
            f" For a column of paths or urls, use --uri-column {name}." if _is_text(schema.types[index]) else ""
        )
        raise SourceError(
            f"The column '{name}' of the {where} (--image-column) is of type {_type(schema.types[index])}, "
            f"which cannot contain images. Allowed are {_IMAGE_TYPES}.{advice}"
        )
    able = [column for i, field in enumerate(schema) if (column := _as_images(i, field))]
    for group in (
        [column for column in able if column.is_struct],
        [c for c in able if not (c.is_struct or pa.types.is_fixed_size_binary(schema.types[c.at]))],
    ):
        if len(group) == 1:
            _find(schema, group[0].name, where, "--image-column")
            return group[0]
        if group:
            several = _listed([schema.field(column.at) for column in group])
            raise SourceError(
                f"The {where} has several columns that can contain images: {several}. Name one with --image-column."
            )
    hint = " Name a column of paths or urls with --uri-column." if any(map(_is_text, schema.types)) else ""
    raise SourceError(
        f"The {where} has no column that can contain images: it has {_listed(schema)}. "
        f"Images are of type {_IMAGE_TYPES}; name the column with --image-column.{hint}"
    )


def label_column(schema: pa.Schema, name: str, where: str) -> int:
    """Find the column with the labels: text, numbers, dates, or a dictionary of those."""
    index = _find(schema, name, where, "--label-column")
    kind = schema.types[index]
    if types.is_dictionary(kind):
        kind = kind.value_type
    is_odd = types.is_nested(kind) or types.is_run_end_encoded(kind) or isinstance(kind, BaseExtensionType)
    if is_odd or _is_bytes(kind):
        raise SourceError(
            f"The column '{name}' of the {where} (--label-column) is of type {_type(schema.types[index])}, "
            "which cannot contain labels. Allowed are text, numbers, dates and dictionaries of them."
        )
    return index


def uri_column(schema: pa.Schema, name: str | None, where: str) -> int:
    """Find the column with uris: the one called `name`, or the only one whose name is in `URI_COLUMNS`."""
    if name is None:
        found = [i for i, field in enumerate(schema) if field.name.casefold() in URI_COLUMNS]
        if len(found) != 1:
            raise SourceError(
                f"The {where} has {'several columns' if found else 'no column'} called "
                f"{' or '.join(repr(one) for one in URI_COLUMNS)}: it has {_listed(schema)}. "
                "Name the one with paths or urls with --uri-column."
            )
        name = schema.field(found[0]).name
    index = _find(schema, name, where, "--uri-column")
    kind = schema.types[index]
    if not _is_text(kind):
        advice = f" For images in the table itself, use --image-column {name}." if _is_bytes(kind) else ""
        raise SourceError(
            f"The column '{name}' of the {where} (--uri-column) is of type {_type(kind)}, which cannot contain "
            f"uris. Allowed are text and dictionaries of text.{advice}"
        )
    return index


def _find(schema: pa.Schema, name: str, where: str, flag: str) -> int:
    found: list[int] = schema.get_all_field_indices(name)
    if len(found) == 1:
        return found[0]
    if found:
        raise SourceError(f"The {where} has {len(found)} columns '{name}' ({flag}). Rename all but one.")
    raise SourceError(
        f"The {where} has no column '{name}' ({flag}){nearest(name, schema.names)} It has {_listed(schema)}."
    )


def _as_images(index: int, field: pa.Field) -> ImageColumn | None:
    """Return a column as an image column, or None if its type cannot contain images."""
    if _is_bytes(field.type):
        return ImageColumn(index, field.name)
    if not pa.types.is_struct(field.type):
        return None
    at, path_at = field.type.get_field_index("bytes"), field.type.get_field_index("path")
    if at < 0 or not _is_bytes(field.type.field(at).type):
        return None
    path = field.type.field(path_at).type if path_at >= 0 else None
    has_path = path is not None and _is_text(path) and not pa.types.is_dictionary(path)
    return ImageColumn(index, field.name, at, path_at if has_path else -1)


def _is_bytes(kind: pa.DataType) -> bool:
    tests = (types.is_binary, types.is_large_binary, types.is_binary_view, types.is_fixed_size_binary)
    return any(test(kind) for test in tests)


def _is_string(kind: pa.DataType) -> bool:
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _is_text(kind: pa.DataType) -> bool:
    return _is_string(kind.value_type if types.is_dictionary(kind) else kind)


def _type(kind: pa.DataType) -> str:
    text = str(kind)
    return text if len(text) <= _MAX_TYPE_CHARACTERS else f"{text[:_MAX_TYPE_CHARACTERS]}…"


def _listed(fields: Sequence[pa.Field] | pa.Schema) -> str:
    """Return the names and types of columns, at most 30 of them."""
    shown = [f"{field.name} ({_type(field.type)})" for field in list(fields)[:_MAX_NAMED]]
    more = len(fields) - len(shown)
    return (", ".join(shown) or "no columns") + (f" and {more} more" if more else "")


def until_damage(rows: Iterable[Row], start: int, end: int) -> Iterator[Row]:
    """Yield the rows from `start` on; after TableError, the remaining ones up to `end` with a problem."""
    number = start
    try:
        for row in rows:
            yield row
            number += 1
    except TableError as error:
        for rest in range(number, end):
            yield Row(rest, 0, None, f"damaged table: {error}")


def texts(array: pa.Array) -> list[str | None]:
    """Return the values of a column as texts: numbers and dates as Arrow formats them, None for null."""
    if not _is_string(array.type):
        array = array.cast(pa.string())
    values: list[str | None] = array.to_pylist()
    return values
