"""Which columns of a table are used, and the errors if none fits."""

from __future__ import annotations

import pyarrow as pa
import pytest

from featurepress.errors import SourceError
from featurepress.sources.tables.columns import URI_COLUMNS, image_column, label_column, uri_column
from tests.sources.tables.tables import HF_TYPE

WHERE = "table 't.parquet'"
TYPES = "binary, large_binary, binary_view, fixed_size_binary, or struct<bytes: binary, path: string>"


def schema(**columns: pa.DataType) -> pa.Schema:
    return pa.schema(list(columns.items()))


def require_refusal(facts: list[str], call: object, *arguments: object) -> None:
    """Check that a call raises SourceError with these facts in its message."""
    with pytest.raises(SourceError) as caught:
        call(*arguments)  # type: ignore[operator]
    assert [fact for fact in facts if fact not in str(caught.value)] == [], caught.value


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
    columns = schema(id=pa.int64(), tags=pa.list_(pa.string()))
    facts = [WHERE, "id (int64), tags (list<item: string>)", TYPES, "--image-column"]
    require_refusal(facts, image_column, columns, None, WHERE)
    require_refusal([WHERE, "no columns"], image_column, schema(), None, WHERE)
    require_refusal(["--uri-column"], image_column, schema(url=pa.string()), None, WHERE)


def test_several_columns_with_images() -> None:
    columns = schema(a=pa.binary(), n=pa.int8(), b=pa.large_binary())
    require_refusal(
        [WHERE, ": a (binary), b (large_binary).", "--image-column"], image_column, columns, None, WHERE
    )
    columns = schema(a=HF_TYPE, b=HF_TYPE, c=pa.binary())
    require_refusal(["a (struct<bytes: binary, path: string>), b (struct"], image_column, columns, None, WHERE)


def test_a_missing_column() -> None:
    columns = schema(image=pa.binary(), label=pa.int64())
    facts = [WHERE, "'imgae' (--image-column)", "did you mean 'image'?", "image (binary), label (int64)"]
    require_refusal(facts, image_column, columns, "imgae", WHERE)
    require_refusal(["(--image-column). It has"], image_column, columns, "zzz", WHERE)


def test_a_column_of_another_type() -> None:
    columns = schema(label=pa.int64(), url=pa.string(), kind=pa.dictionary(pa.int8(), pa.string()))
    facts = ["'label'", WHERE, "(--image-column)", "int64", TYPES]
    require_refusal(facts, image_column, columns, "label", WHERE)
    for name in ("url", "kind"):
        require_refusal([f"--uri-column {name}."], image_column, columns, name, WHERE)


def test_a_repeated_column() -> None:
    twice = pa.schema([("image", pa.binary()), ("image", pa.int8()), ("n", pa.int8())])
    for name in ("image", None):
        require_refusal([WHERE, "2 columns 'image' (--image-column)"], image_column, twice, name, WHERE)


def test_only_the_first_of_many_columns_are_named() -> None:
    many = schema(**{f"c{i}": pa.int8() for i in range(1000)})
    require_refusal(["c29 (int8) and 970 more. "], image_column, many, None, WHERE)
    wide = pa.struct([(f"field{i}", pa.int8()) for i in range(100)])
    require_refusal([f"wide ({str(wide)[:60]}…)."], image_column, schema(wide=wide), None, WHERE)


# -- labels --------------------------------------------------------------------------------------------------


def test_types_of_labels() -> None:
    good = [pa.string(), pa.int8(), pa.float64(), pa.bool_(), pa.date32(), pa.decimal128(5), pa.null()]
    for kind in [*good, pa.dictionary(pa.int8(), pa.int64())]:
        assert label_column(schema(n=pa.int8(), label=kind), "label", WHERE) == 1
    bad = [pa.binary(), pa.list_(pa.int8()), HF_TYPE, pa.dictionary(pa.int8(), pa.binary())]
    for kind in [*bad, pa.run_end_encoded(pa.int32(), pa.string())]:
        facts = ["'label'", WHERE, "(--label-column)", str(kind), "text, numbers, dates and dictionaries"]
        require_refusal(facts, label_column, schema(label=kind), "label", WHERE)


def test_a_missing_label_column() -> None:
    facts = [WHERE, "'label' (--label-column)", "did you mean 'labels'?", "labels (int64)"]
    require_refusal(facts, label_column, schema(labels=pa.int64()), "label", WHERE)


# -- uris ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*URI_COLUMNS, "URL", "File_Name"])
def test_a_column_of_uris_is_found_by_its_name(name: str) -> None:
    assert uri_column(schema(n=pa.string(), **{name: pa.string()}), None, WHERE) == 1


def test_no_column_or_several_of_uris() -> None:
    facts = ["list 'l.csv'", *map(repr, URI_COLUMNS), "--uri-column"]
    columns = schema(a=pa.string(), n=pa.int8())
    require_refusal([*facts, "no column", "a (string), n (int8)"], uri_column, columns, None, "list 'l.csv'")
    columns = schema(url=pa.string(), path=pa.string())
    facts += ["several columns", "url (string), path (string)"]
    require_refusal(facts, uri_column, columns, None, "list 'l.csv'")


def test_a_column_without_uris() -> None:
    facts = ["'a'", WHERE, "(--uri-column)", "int64", "text and dictionaries of text"]
    require_refusal(facts, uri_column, schema(a=pa.int64()), "a", WHERE)
    require_refusal(["--image-column a."], uri_column, schema(a=pa.binary()), "a", WHERE)
    for kind in (pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())):
        assert uri_column(schema(n=pa.int8(), a=kind), "a", WHERE) == 1
