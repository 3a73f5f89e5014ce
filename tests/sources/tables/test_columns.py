"""Which columns of a table are used, and the errors if none fits."""

from __future__ import annotations

import re

import pyarrow as pa
import pytest

from featurepress.errors import SourceError
from featurepress.sources.tables.columns import URI_COLUMNS, image_column, label_column, uri_column
from tests.sources.tables.tables import HF_TYPE

WHERE = "table 't.parquet'"
TYPES = "binary, large_binary, binary_view, fixed_size_binary, or struct<bytes: binary, path: string>"


def schema(**columns: pa.DataType) -> pa.Schema:
    return pa.schema(list(columns.items()))


def refusal(call: object, *arguments: object) -> str:
    with pytest.raises(SourceError) as caught:
        call(*arguments)  # type: ignore[operator]
    return str(caught.value)


# -- images --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "name"),
    [
        ({"n": pa.int64(), "pic": pa.binary(), "text": pa.string()}, "pic"),
        ({"pic": pa.large_binary()}, "pic"),
        ({"pic": pa.binary_view()}, "pic"),
        ({"a": pa.binary(), "image": HF_TYPE, "b": pa.binary()}, "image"),
        ({"image": pa.struct([("bytes", pa.binary())]), "label": pa.int64()}, "image"),
        ({"image": pa.struct([("path", pa.string()), ("bytes", pa.large_binary())])}, "image"),
        ({"sha256": pa.binary(32), "pic": pa.binary()}, "pic"),
    ],
)
def test_the_only_column_that_can_contain_images_is_used(columns: dict[str, pa.DataType], name: str) -> None:
    assert image_column(schema(**columns), None, WHERE).name == name


def test_positions_of_bytes_and_path_in_a_struct() -> None:
    kind = pa.struct([("x", pa.int8()), ("path", pa.string()), ("bytes", pa.binary())])
    assert image_column(schema(n=pa.int8(), image=kind), None, WHERE) == (1, "image", 2, 1)
    other = pa.struct([("bytes", pa.binary()), ("path", pa.int64())])
    assert image_column(schema(image=other), None, WHERE) == (0, "image", 0, -1)


def test_a_requested_column() -> None:
    columns = schema(a=pa.binary(), b=pa.binary(4), c=HF_TYPE)
    assert [image_column(columns, name, WHERE).name for name in "abc"] == ["a", "b", "c"]


def test_no_column_with_images() -> None:
    assert refusal(image_column, schema(id=pa.int64(), tags=pa.list_(pa.string())), None, WHERE) == (
        "The table 't.parquet' has no column that can contain images: "
        "it has id (int64), tags (list<item: string>). "
        f"Images are of type {TYPES}; name the column with --image-column."
    )
    assert refusal(image_column, schema(), None, WHERE).startswith(
        "The table 't.parquet' has no column that can contain images: it has no columns."
    )


def test_a_text_column_adds_a_hint() -> None:
    assert refusal(image_column, schema(url=pa.string()), None, WHERE).endswith(
        " Name a column of paths or urls with --uri-column."
    )


def test_several_columns_with_images() -> None:
    assert refusal(image_column, schema(a=pa.binary(), n=pa.int8(), b=pa.large_binary()), None, WHERE) == (
        "The table 't.parquet' has several columns that can contain images: a (binary), b (large_binary). "
        "Name one with --image-column."
    )
    assert "a (struct<bytes: binary, path: string>), b (struct" in refusal(
        image_column, schema(a=HF_TYPE, b=HF_TYPE, c=pa.binary()), None, WHERE
    )


def test_a_missing_column() -> None:
    assert refusal(image_column, schema(image=pa.binary(), label=pa.int64()), "imgae", WHERE) == (
        "The table 't.parquet' has no column 'imgae' (--image-column); did you mean 'image'? "
        "It has image (binary), label (int64)."
    )
    assert "(--image-column). It has" in refusal(image_column, schema(image=pa.binary()), "zzz", WHERE)


def test_a_column_of_another_type() -> None:
    columns = schema(label=pa.int64(), url=pa.string(), kind=pa.dictionary(pa.int8(), pa.string()))
    assert refusal(image_column, columns, "label", WHERE) == (
        "The column 'label' of the table 't.parquet' (--image-column) is of type int64, which cannot contain "
        f"images. Allowed are {TYPES}."
    )
    for name in ("url", "kind"):
        assert refusal(image_column, columns, name, WHERE).endswith(
            f" For a column of paths or urls, use --uri-column {name}."
        )


def test_a_repeated_column() -> None:
    twice = pa.schema([("image", pa.binary()), ("image", pa.int8()), ("n", pa.int8())])
    expected = "The table 't.parquet' has 2 columns 'image' (--image-column). Rename all but one."
    assert refusal(image_column, twice, "image", WHERE) == expected
    assert refusal(image_column, twice, None, WHERE) == expected


def test_only_the_first_of_many_columns_are_named() -> None:
    text = refusal(image_column, schema(**{f"c{i}": pa.int8() for i in range(1000)}), None, WHERE)
    assert "c29 (int8) and 970 more. " in text
    wide = pa.struct([(f"field{i}", pa.int8()) for i in range(100)])
    assert re.search(
        r"it has wide \(struct<field0: .{40,60}…\)\.", refusal(image_column, schema(wide=wide), None, WHERE)
    )


# -- labels --------------------------------------------------------------------------------------------------


def test_types_of_labels() -> None:
    good = [pa.string(), pa.int8(), pa.float64(), pa.bool_(), pa.date32(), pa.decimal128(5), pa.null()]
    for kind in [*good, pa.dictionary(pa.int8(), pa.int64())]:
        assert label_column(schema(n=pa.int8(), label=kind), "label", WHERE) == 1
    bad = [pa.binary(), pa.list_(pa.int8()), HF_TYPE, pa.dictionary(pa.int8(), pa.binary())]
    for kind in [*bad, pa.run_end_encoded(pa.int32(), pa.string())]:
        assert refusal(label_column, schema(label=kind), "label", WHERE) == (
            f"The column 'label' of the table 't.parquet' (--label-column) is of type {kind}, which cannot contain "
            "labels. Allowed are text, numbers, dates and dictionaries of them."
        )


def test_a_missing_label_column() -> None:
    assert refusal(label_column, schema(labels=pa.int64()), "label", WHERE) == (
        "The table 't.parquet' has no column 'label' (--label-column); did you mean 'labels'? "
        "It has labels (int64)."
    )


# -- uris ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*URI_COLUMNS, "URL", "File_Name"])
def test_a_column_of_uris_is_found_by_its_name(name: str) -> None:
    assert uri_column(schema(n=pa.string(), **{name: pa.string()}), None, WHERE) == 1


def test_no_column_or_several_of_uris() -> None:
    names = "'uri' or 'url' or 'path' or 'image' or 'file_name' or 'filename'"
    assert refusal(uri_column, schema(a=pa.string(), n=pa.int8()), None, "list 'l.csv'") == (
        f"The list 'l.csv' has no column called {names}: it has a (string), n (int8). "
        "Name the one with paths or urls with --uri-column."
    )
    assert refusal(uri_column, schema(url=pa.string(), path=pa.string()), None, "list 'l.csv'") == (
        f"The list 'l.csv' has several columns called {names}: it has url (string), path (string). "
        "Name the one with paths or urls with --uri-column."
    )


def test_a_column_without_uris() -> None:
    assert refusal(uri_column, schema(a=pa.int64()), "a", WHERE) == (
        "The column 'a' of the table 't.parquet' (--uri-column) is of type int64, which cannot contain uris. "
        "Allowed are text and dictionaries of text."
    )
    assert refusal(uri_column, schema(a=pa.binary()), "a", WHERE).endswith(
        " For images in the table itself, use --image-column a."
    )
    for kind in (pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())):
        assert uri_column(schema(n=pa.int8(), a=kind), "a", WHERE) == 1
