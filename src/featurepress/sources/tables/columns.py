"""The columns of tables: which hold images, labels and uris, and what their rows give."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from featurepress.errors import ImageError, SourceError
from featurepress.settings import nearest

if TYPE_CHECKING:
    import pyarrow as pa

TEXT_ROWS = 8192  # of text columns that are in memory at once
_MOST_NAMED, _TYPE_CHARACTERS = 30, 60
_HOLD_IMAGES = "binary, large_binary, binary_view, fixed_size_binary, or struct<bytes: binary, path: string>"


class TableError(Exception):
    """A table, or a piece of one, cannot be read; the text says why, in words for people.

    Parameters
    ----------
    reason : str
        Why.
    row : int, optional
        The first row that nobody can list, where the table breaks off.
    """

    def __init__(self, reason: str, row: int | None = None) -> None:
        super().__init__(reason)
        self.row = row

    @classmethod
    def of(cls, error: BaseException) -> TableError:
        """Return what a library raised, in one short line."""
        return cls(" ".join(str(error).split())[:200] or type(error).__name__)


class Row(NamedTuple):
    """A row of a table as a listing needs it.

    Attributes
    ----------
    number : int
        From 0.
    size : int
        Bytes of its image, or about as many.
    label : str or None
        None where there is none.
    problem : str or None
        Why there is nothing to read.
    """

    number: int
    size: int
    label: str | None
    problem: str | None = None


class Picture(NamedTuple):
    """What the image column holds in a row: the bytes, or where they lie, or neither."""

    data: bytes | None
    path: str | None = None


class ImageColumn(NamedTuple):
    """The column with the images.

    Attributes
    ----------
    at, name
        Which one of the table it is.
    bytes_at, path_at : int
        Which children of a struct hold them; -1 without.
    """

    at: int
    name: str
    bytes_at: int = -1
    path_at: int = -1

    @property
    def is_struct(self) -> bool:
        """Whether it is a struct of bytes and path, as Hugging Face writes them."""
        return self.bytes_at >= 0


def too_many_bytes(n_bytes: int, max_bytes: int) -> ImageError:
    """Return the error of an image that is larger than allowed."""
    return ImageError("read", f"too many bytes: {n_bytes}, above the limit of {max_bytes} (--max-bytes)")


# -- which column --------------------------------------------------------------------------------------------


def image_column(schema: pa.Schema, name: str | None, where: str) -> ImageColumn:
    """Find the column that holds the images.

    Parameters
    ----------
    schema : pyarrow.Schema
        Of the table.
    name : str or None
        What the user calls it; None for the only one that can be it.
    where : str
        What errors call the table.

    Raises
    ------
    SourceError
        There is no such column, or more than one, or it can hold no images.
    """
    import pyarrow as pa

    if name is not None:
        index = _find(schema, name, where, "--image-column")
        if (column := _as_images(index, schema.field(index))) is not None:
            return column
        advice = (
            f" For a column of paths or urls give --uri-column {name}." if _is_text(schema.types[index]) else ""
        )
        raise SourceError(
            f"The column '{name}' of the {where} (--image-column) is of type {_type(schema.types[index])}, "
            f"which holds no images. Allowed are {_HOLD_IMAGES}.{advice}"
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
                f"The {where} has several columns that can hold images: {several}. Name one with --image-column."
            )
    hint = " Name a column of paths or urls with --uri-column." if any(map(_is_text, schema.types)) else ""
    raise SourceError(
        f"The {where} has no column that can hold images: it has {_listed(schema)}. "
        f"Images are of type {_HOLD_IMAGES}; name the column with --image-column.{hint}"
    )


def label_column(schema: pa.Schema, name: str, where: str) -> int:
    """Find the column that holds the labels: text, numbers, dates, or a dictionary of those."""
    import pyarrow as pa

    index = _find(schema, name, where, "--label-column")
    kind, test = schema.types[index], pa.types
    if test.is_dictionary(kind):
        kind = kind.value_type
    if test.is_nested(kind) or _is_bytes(kind) or test.is_run_end_encoded(kind) or _is_extension(kind):
        raise SourceError(
            f"The column '{name}' of the {where} (--label-column) is of type {_type(schema.types[index])}, "
            "which holds no labels. Allowed are text, numbers, dates and dictionaries of them."
        )
    return index


def uri_column(schema: pa.Schema, name: str | None, names: Sequence[str], where: str) -> int:
    """Find the column that holds uris: the one called `name`, or the only one whose name is among `names`."""
    if name is None:
        found = [i for i, field in enumerate(schema) if field.name.casefold() in names]
        if len(found) != 1:
            raise SourceError(
                f"The {where} has {'several columns' if found else 'no column'} called "
                f"{' or '.join(repr(one) for one in names)}: it has {_listed(schema)}. "
                "Name the one with paths or urls with --uri-column."
            )
        name = schema.field(found[0]).name
    index = _find(schema, name, where, "--uri-column")
    kind = schema.types[index]
    if not _is_text(kind):
        advice = f" For images in the table itself give --image-column {name}." if _is_bytes(kind) else ""
        raise SourceError(
            f"The column '{name}' of the {where} (--uri-column) is of type {_type(kind)}, which holds no uris. "
            f"Allowed are text and dictionaries of text.{advice}"
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
    """Return the column as one of images, if its type can hold them."""
    import pyarrow as pa

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
    import pyarrow as pa

    test = pa.types
    return bool(
        test.is_binary(kind)
        or test.is_large_binary(kind)
        or test.is_binary_view(kind)
        or test.is_fixed_size_binary(kind)
    )


def _is_text(kind: pa.DataType) -> bool:
    import pyarrow as pa

    test = pa.types
    if test.is_dictionary(kind):
        kind = kind.value_type
    return bool(test.is_string(kind) or test.is_large_string(kind) or test.is_string_view(kind))


def _is_extension(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return isinstance(kind, pa.BaseExtensionType)


def _type(kind: pa.DataType) -> str:
    text = str(kind)
    return text if len(text) <= _TYPE_CHARACTERS else f"{text[:_TYPE_CHARACTERS]}…"


def _listed(fields: Sequence[pa.Field] | pa.Schema) -> str:
    """Name columns with their types, the first few of them."""
    shown = [f"{field.name} ({_type(field.type)})" for field in list(fields)[:_MOST_NAMED]]
    more = len(fields) - len(shown)
    return (", ".join(shown) or "no columns") + (f" and {more} more" if more else "")


# -- their values --------------------------------------------------------------------------------------------


def texts(array: pa.Array) -> list[str | None]:
    """Return the values of a column as texts: numbers and dates as Arrow spells them, None for null."""
    import pyarrow as pa

    kind = array.type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        array = array.cast(pa.string())
    values: list[str | None] = array.to_pylist()
    return values
