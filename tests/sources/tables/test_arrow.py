"""Arrow's IPC formats as Arrow writes them: other columns of every type, dictionaries, and how much is read."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from featurepress.errors import ImageError
from featurepress.sources.tables.columns import ImageColumn, TableError, image_column
from featurepress.sources.tables.rows import Table, open_table
from tests.sources.tables.tables import hugging_face

IMAGES = [b"a", None, b"ccc" * 9, b""]
MOST = 10**9


class Counted(io.BytesIO):
    """A file that counts the bytes that are read from it."""

    n_bytes = 0

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self.n_bytes += len(data)
        return data


def stream(table: pa.Table, rows: int = 1000, **options: Any) -> Counted:
    file = io.BytesIO()
    with pa.ipc.new_stream(file, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table, max_chunksize=rows)
    return Counted(file.getvalue())


def read_all(table: Table, column: ImageColumn, n: int) -> list[bytes | None]:
    return [table.read(column, i, MOST).data for i in range(n)]


BESIDE = {
    "null": pa.nulls(4),
    "bool": pa.array([True, None, False, True]),
    "text": pa.array(["a", None, "ccc", ""]),
    "text view": pa.array(["a", None, "c" * 40, "d" * 50], pa.string_view()),
    "fixed": pa.array([b"ab", None, b"cd", b"ef"], pa.binary(2)),
    "decimal": pa.array([1, None, 3, 4], pa.decimal128(5, 1)),
    "list": pa.array([["a"], None, [], ["b", "c"]]),
    "large list": pa.array([[1], None, [], [2, 3]], pa.large_list(pa.int8())),
    "list of views": pa.array([["a" * 20], None, [], ["b" * 30]], pa.list_(pa.string_view())),
    "fixed list": pa.array([[1, 2], None, [3, 4], [5, 6]], pa.list_(pa.int8(), 2)),
    "list view": pa.array([[1, 2], None, [3, 4], [5, 6]], pa.list_view(pa.int8())),
    "map": pa.array([[("a", 1)], None, [], [("b", 2)]], pa.map_(pa.string(), pa.int8())),
    "struct": pa.array([{"a": {"b": [1]}, "c": "x"}, None, {"a": None, "c": None}, {"a": {"b": []}, "c": ""}]),
    "sparse union": pa.UnionArray.from_sparse(
        pa.array([0, 1, 0, 1], pa.int8()), [pa.array([1, 2, 3, 4]), pa.array(list("abcd"))]
    ),
    "dense union": pa.UnionArray.from_dense(
        pa.array([0, 1, 0, 1], pa.int8()),
        pa.array([0, 0, 1, 1], pa.int32()),
        [pa.array([1, 2]), pa.array(["a", "b"])],
    ),
    "run ends": pa.RunEndEncodedArray.from_arrays([3, 4], ["a", None]),
    "dictionary": pa.array(["a", None, "a", "b"]).dictionary_encode(),
    "dictionary in a list": pa.ListArray.from_arrays([0, 1, 1, 2, 3], pa.array(list("aba")).dictionary_encode()),
    "extension": pa.array([b"x" * 16, None, b"y" * 16, b"z" * 16], pa.uuid()),
}  # fmt: skip


@pytest.mark.parametrize("compression", [None, "lz4", "zstd"])
@pytest.mark.parametrize("beside", BESIDE)
def test_images_are_found_behind_columns_of_any_type(beside: str, compression: str | None) -> None:
    kinds = [pa.binary(), pa.large_binary(), pa.binary_view()]
    columns = {"before": BESIDE[beside], "label": pa.array(["x", None, "y", "z"])}
    columns |= {str(kind): pa.array(IMAGES, kind) for kind in kinds}
    columns["struct"] = hugging_face([None if image is None else (image, None) for image in IMAGES])
    for rows in (1000, 1):
        table = open_table(stream(pa.table(columns), rows, compression=compression))
        for name in [*map(str, kinds), "struct"]:
            column = image_column(table.schema, name, "table")
            assert read_all(table, column, 4) == IMAGES
            assert read_all(table, column, 4)[::-1] == IMAGES[::-1]
            found = list(table.rows(column, 1, 0))
            assert [(row.number, row.size, row.label) for row in found] == [
                (0, 1, "x"), (1, 0, None), (2, 27, "y"), (3, 0, "z")
            ]  # fmt: skip
            assert [row.problem for row in found] == [None, "no image in this row", None, None]
        table.close()


def test_slices_of_a_table_are_written_whole() -> None:
    table = pa.table({"image": [b"%d" % i for i in range(100)], "label": [str(i) for i in range(100)]})
    found = open_table(stream(table.slice(13, 50), 7))
    column = image_column(found.schema, None, "table")
    assert read_all(found, column, 50) == [b"%d" % i for i in range(13, 63)]
    assert [row.label for row in found.rows(column, 1, 20)] == [str(i) for i in range(33, 63)]


def test_dictionaries_grow_and_are_replaced() -> None:
    def batch(labels: list[str | None], dictionary: list[str]) -> pa.RecordBatch:
        indices = pa.array([None if one is None else dictionary.index(one) for one in labels], pa.int8())
        column = pa.DictionaryArray.from_arrays(indices, pa.array(dictionary))
        other = pa.array(["same"] * len(labels), pa.string()).dictionary_encode()
        images = pa.array([b"x"] * len(labels), pa.binary())
        return pa.record_batch({"image": images, "other": other, "label": column})

    batches = [
        batch(["a", "b"], ["a", "b"]),
        batch(["c", None, "a"], ["a", "b", "c"]),  # a delta
        batch(["z", "b"], ["z", "b"]),  # a replacement
        batch([], ["z", "b"]),
        batch(["z", "y"], ["z", "b", "y"]),
    ]
    expected = ["a", "b", "c", None, "a", "z", "b", "z", "y"]
    for emit_deltas in (True, False):
        file = io.BytesIO()
        options = pa.ipc.IpcWriteOptions(emit_dictionary_deltas=emit_deltas)
        with pa.ipc.new_stream(file, batches[0].schema, options=options) as writer:
            for one in batches:
                writer.write_batch(one)
        table = open_table(io.BytesIO(file.getvalue()))
        column = image_column(table.schema, None, "table")
        assert [row.label for row in table.rows(column, 2, 0)] == expected
        assert [row.label for row in table.rows(column, 2, 4)] == expected[4:]
        assert [found for _, (found,) in table.texts([2])] == [
            expected[:2],
            expected[2:5],
            expected[5:7],
            expected[7:],
        ]


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_a_listing_does_not_read_images(compression: str | None) -> None:
    images = [os.urandom(10_000) for _ in range(500)]
    file = stream(pa.table({"image": images, "label": ["x"] * 500}), 100, compression=compression)
    table = open_table(file)
    assert len(list(table.rows(image_column(table.schema, None, "table"), 1, 0))) == 500
    assert file.n_bytes < 20_000


def test_reading_an_image_reads_little_else() -> None:
    images = [os.urandom(10_000) for _ in range(500)]
    file = stream(pa.table({"image": images}), 100)
    table = open_table(file)
    column = image_column(table.schema, None, "table")
    assert table.read(column, 450, MOST).data == images[450]
    assert file.n_bytes < 20_000


def test_a_compressed_buffer_is_read_forward_once() -> None:
    images = [os.urandom(10_000) for _ in range(500)]
    file = stream(pa.table({"image": images}), 500, compression="lz4")
    table = open_table(file)
    column = image_column(table.schema, None, "table")
    assert table.read(column, 0, MOST).data == images[0]
    assert file.n_bytes < 3 * 1024**2
    assert read_all(table, column, 500) == images
    assert file.n_bytes < 12_000_000  # once for the first image, which needs a new start, and once for all


def test_an_image_above_the_limit_is_not_read() -> None:
    file = stream(pa.table({"image": [b"x" * 1000, os.urandom(1_000_000)]}))
    table = open_table(file)
    column = image_column(table.schema, None, "table")
    with pytest.raises(ImageError, match=r"read: too many bytes: 1000000, above the limit of 1000 \(--max-bytes\)"):
        table.read(column, 1, 1000)
    assert table.read(column, 0, 1000).data == b"x" * 1000
    assert file.n_bytes < 10_000


def test_a_row_that_no_longer_exists() -> None:
    table = open_table(stream(pa.table({"image": [b"x"]})))
    with pytest.raises(TableError, match="it has fewer rows than when it was listed"):
        table.read(image_column(table.schema, None, "table"), 1, MOST)


def test_a_table_in_the_cache_of_hugging_face_is_read(tmp_path: Path) -> None:
    """The cache has streams of struct<bytes, path>, with numbers as labels."""
    labels = pa.array([3, 1], pa.int64())
    table = pa.table({"image": hugging_face([(b"one", None), (b"two", None)]), "label": labels})
    table = table.replace_schema_metadata({"huggingface": '{"info": {"features": {}}}'})
    path = tmp_path / "data-00000-of-00001.arrow"
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    with path.open("rb") as file:
        found = open_table(file)
        assert read_all(found, image_column(found.schema, None, "table"), 2) == [b"one", b"two"]
