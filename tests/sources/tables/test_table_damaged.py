"""Tables that are damaged, cut short, or in another format."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurepress.errors import ImageError, SourceError
from featurepress.settings import ImageSettings
from featurepress.sources.lists.uris import UriSource
from featurepress.sources.tables.ipc import read_message
from featurepress.sources.tables.table import TableSource
from featurepress.specs import ImageRef, SourceSpec
from tests.sources.tables.tables import ARROW, FORMATS, hugging_face, write_parquet, write_stream

IMAGES = [b"image # %d" % i * 20 for i in range(10)]
every_format = pytest.mark.parametrize("name", FORMATS)


def source(base: Path, location: str, **options: Any) -> TableSource:
    return TableSource(SourceSpec("table", location, str(base), options), ImageSettings(max_bytes=10_000_000))


def refusal(base: Path, location: str, **options: Any) -> str:
    with pytest.raises(SourceError) as caught:
        list(source(base, location, **options).list())
    return str(caught.value)


def damage(path: Path, at: int, with_bytes: bytes) -> None:
    data = bytearray(path.read_bytes())
    data[at : at + len(with_bytes)] = with_bytes
    path.write_bytes(data)


# -- other files ---------------------------------------------------------------------------------------------

NO_TABLES = {
    b"": "it is empty",
    b"just text": "it is neither Parquet nor Arrow",
    b"FEA1 and so on": "it is Feather version 1; write it again as version 2 or Parquet",
    b"ARROW1\0\0": "it is cut short",
    b"\xff\xff\xff\xff\xff\0\0\0": "a message is longer than the file",
    b"\xff\xff\xff\xff\0\0\0\0": "it does not begin with a schema",
    b"\xff\xff\xff\xff\x10\0\0\0" + b"\0" * 16: "it is cut short",
}


@pytest.mark.parametrize("content", NO_TABLES)
def test_a_file_that_is_not_a_table_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.parquet").write_bytes(content)
    reason = NO_TABLES[content]
    expected = f"The table 'a.parquet' cannot be read: {reason}. Use a Parquet or an Arrow file."
    assert refusal(tmp_path, "a.parquet") == expected


def test_parquet_without_its_end_is_refused(tmp_path: Path) -> None:
    write_parquet(pa.table({"image": IMAGES}), tmp_path / "a.parquet")
    data = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(data[:-20])
    text = refusal(tmp_path, "a.parquet")
    assert text.startswith("The table 'a.parquet' cannot be read: ")
    assert text.endswith(". Use a Parquet or an Arrow file.")
    assert "\n" not in text


def test_a_later_file_that_is_not_a_table_is_a_failure(tmp_path: Path) -> None:
    write_parquet(pa.table({"image": IMAGES[:1]}), tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_text("no table")
    (tmp_path / "c.parquet").symlink_to("nowhere")
    write_parquet(pa.table({"picture": [1]}), tmp_path / "d.parquet")
    write_parquet(pa.table({"image": IMAGES[:1]}), tmp_path / "e.parquet")
    one = source(tmp_path, "*.parquet")
    refs = list(one.list())
    assert [(ref.uri, ref.problem) for ref in refs][:3] == [
        ("a.parquet#row=0", None),
        ("b.parquet", "damaged table: it is neither Parquet nor Arrow"),
        ("c.parquet", "damaged table: broken link: its target does not exist"),
    ]
    assert [ref.uri for ref in refs][3:] == ["d.parquet", "e.parquet#row=0"]
    assert str(refs[3].problem).startswith(
        "The table 'd.parquet' has no column that can contain images: it has picture"
    )
    for i, ref in enumerate(refs):
        assert list(one.list(ref.order)) == refs[i + 1 :]
    labelled = source(tmp_path, "[ab].parquet", brings_label=True)
    assert [ref.fields for ref in labelled.list()] == [(None,), (None,)]


def test_wrong_columns_of_the_first_table_are_refused(tmp_path: Path) -> None:
    write_parquet(pa.table({"image": IMAGES, "label": IMAGES}), tmp_path / "a.parquet")
    write_parquet(pa.table({"image": IMAGES}), tmp_path / "b.parquet")
    assert refusal(tmp_path, "*.parquet", image_column="pic") == (
        "The table 'a.parquet' has no column 'pic' (--image-column). It has image (binary), label (binary)."
    )
    assert refusal(tmp_path, "*.parquet", image_column="image", label_column="label").startswith(
        "The column 'label' of the table 'a.parquet' (--label-column) is of type binary"
    )


# -- damage --------------------------------------------------------------------------------------------------


def test_a_stream_that_is_cut_short_is_listed_up_to_there(tmp_path: Path) -> None:
    write_stream(pa.table({"image": IMAGES, "label": list("abcdefghij")}), tmp_path / "a.arrow")
    data = (tmp_path / "a.arrow").read_bytes()
    (tmp_path / "a.arrow").write_bytes(data[:-200])
    one = source(tmp_path, "a.arrow", label_column="label", brings_label=True)
    refs = list(one.list())
    assert [(ref.uri, ref.fields) for ref in refs[:-1]] == [
        (f"a.arrow#row={i}", ("abcdefgh"[i],)) for i in range(8)
    ]
    assert (refs[-1].uri, refs[-1].problem) == ("a.arrow#row=8", "damaged table: it is cut short")
    assert [one.read(ref) for ref in refs[:-1]] == IMAGES[:8]
    for i, ref in enumerate(refs):
        assert list(one.list(ref.order)) == refs[i + 1 :]


def test_a_stream_without_an_end_mark_is_complete(tmp_path: Path) -> None:
    write_stream(pa.table({"image": IMAGES}), tmp_path / "a.arrow")
    data = (tmp_path / "a.arrow").read_bytes()
    assert data.endswith(b"\xff\xff\xff\xff\0\0\0\0")
    (tmp_path / "a.arrow").write_bytes(data[:-8])
    one = source(tmp_path, "a.arrow")
    assert [one.read(ref) for ref in one.list()] == IMAGES


def reasons(one: TableSource, refs: list[ImageRef]) -> list[str | None]:
    """Return the problem of each image: None if it is read."""
    found: list[str | None] = []
    for ref in refs:
        try:
            one.read(ref)
            found.append(ref.problem)
        except ImageError as error:
            found.append(error.reason)
    return found


def test_a_damaged_row_group_costs_its_rows(tmp_path: Path) -> None:
    options: dict[str, Any] = {"write_page_checksum": True, "compression": "none", "use_dictionary": False}
    write_parquet(pa.table({"image": IMAGES}), tmp_path / "a.parquet", **options)
    chunk = pq.ParquetFile(tmp_path / "a.parquet").metadata.row_group(1).column(0)
    damage(tmp_path / "a.parquet", chunk.data_page_offset + chunk.total_compressed_size - 10, b"?" * 5)
    one = source(tmp_path, "a.parquet")
    refs = list(one.list())
    assert len(refs) == 10
    found = reasons(one, refs)
    assert found[:4] == [None] * 4
    assert found[8:] == [None] * 2
    assert all(str(reason).startswith("damaged table: ") for reason in found[4:8])
    assert reasons(one, refs[::-1]) == found[::-1]


def test_damaged_labels_are_problems_not_nulls(tmp_path: Path) -> None:
    options: dict[str, Any] = {"write_page_checksum": True, "compression": "none", "use_dictionary": False}
    table = pa.table({"image": IMAGES, "label": [f"label {i}" for i in range(10)]})
    write_parquet(table, tmp_path / "a.parquet", **options)
    chunk = pq.ParquetFile(tmp_path / "a.parquet").metadata.row_group(1).column(1)
    damage(tmp_path / "a.parquet", chunk.data_page_offset + chunk.total_compressed_size - 5, b"?" * 3)
    refs = list(source(tmp_path, "a.parquet", label_column="label", brings_label=True).list())
    assert [ref.fields for ref in refs[:4] + refs[8:]] == [(f"label {i}",) for i in (0, 1, 2, 3, 8, 9)]
    assert [ref.uri for ref in refs] == [f"a.parquet#row={i}" for i in range(10)]
    for ref in refs[4:8]:
        assert ref.fields == (None,)
        assert str(ref.problem).startswith("damaged table: ")


def test_labels_that_are_not_text_are_problems(tmp_path: Path) -> None:
    labels = pa.array([b"good", b"b\xffd"]).view(pa.string())
    for name, write in (("a.parquet", write_parquet), ("a.arrow", write_stream)):
        write(pa.table({"image": IMAGES[:2], "label": labels}), tmp_path / name)
        refs = list(source(tmp_path, name, label_column="label", brings_label=True).list())
        assert len(refs) == 2
        assert all("damaged table: " in str(ref.problem) for ref in refs)


def test_offsets_outside_the_table_are_a_failure(tmp_path: Path) -> None:
    write_stream(pa.table({"image": IMAGES[:3]}), tmp_path / "a.arrow")
    at = (tmp_path / "a.arrow").read_bytes().index((180).to_bytes(4, "little") + (360).to_bytes(4, "little"))
    damage(tmp_path / "a.arrow", at, (2**31 - 1).to_bytes(4, "little"))
    one = source(tmp_path, "a.arrow")
    refs = list(one.list())
    assert [ref.problem for ref in refs] == ["damaged table: offsets are not in order"] * 3
    assert reasons(one, refs)[1] == "damaged table: offsets are not in order"


def test_a_struct_with_shorter_children_is_a_failure(tmp_path: Path) -> None:
    write_stream(pa.table({"image": hugging_face([(image, "p") for image in IMAGES[:3]])}), tmp_path / "a.arrow")
    data = (tmp_path / "a.arrow").read_bytes()
    at = 0
    while (message := read_message(lambda at, n: data[at : at + n], at, len(data))) and message.batch is None:
        at = message.end
    assert message is not None
    nodes, _ = message.header._vector(1)
    damage(
        tmp_path / "a.arrow", message.at + 8 + nodes + 16, (2).to_bytes(8, "little")
    )  # the length of the child with the bytes
    one = source(tmp_path, "a.arrow")
    refs = list(one.list())
    assert [ref.problem for ref in refs] == ["damaged table: a struct has children of another length"] * 3
    assert reasons(one, refs) == ["damaged table: a struct has children of another length"] * 3


@every_format
def test_random_bytes_are_a_problem_and_never_a_crash(tmp_path: Path, name: str) -> None:
    table = pa.table(
        {
            "more": [[{"a": 1}]] * 10,
            "image": hugging_face([(image, "p") for image in IMAGES]),
            "view": pa.array(IMAGES, pa.binary_view()),
            "label": pa.array(list("aabbccddee")).dictionary_encode(),
            "uri": [f"s3://b/{i}" for i in range(10)],
        }
    )
    FORMATS[name](table, tmp_path / name)
    good = (tmp_path / name).read_bytes()
    chance = random.Random(name)
    options = {"label_column": "label", "brings_label": True}
    for _ in range(150):
        bad = bytearray(good)
        for _ in range(chance.choice([1, 1, 4, 20])):
            bad[chance.randrange(len(bad))] = chance.choice([0, 1, 127, 128, 255, chance.randrange(256)])
        (tmp_path / name).write_bytes(bad[: chance.choice([len(bad), len(bad), chance.randrange(len(bad))])])
        one = source(tmp_path, name, image_column=chance.choice(["image", "view"]), **options)
        with contextlib.suppress(SourceError):
            refs = list(one.list())
            assert [ref.order for ref in refs] == sorted({ref.order for ref in refs})
            reasons(one, refs[:50])
        with contextlib.suppress(SourceError):
            list(UriSource(SourceSpec("uris", name, str(tmp_path), {"uri_column": "uri", **options})).list())


@pytest.mark.parametrize("name", ARROW)
def test_a_file_format_needs_its_end_and_a_stream_does_not(tmp_path: Path, name: str) -> None:
    FORMATS[name](pa.table({"image": IMAGES}), tmp_path / name)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[:-3])
    if data.startswith(b"ARROW1"):
        assert "cannot be read: it is cut short" in refusal(tmp_path, name)
    else:
        assert [ref.problem for ref in source(tmp_path, name).list()] == [None] * 10 + [
            "damaged table: it is cut short"
        ]


def test_a_big_endian_table_is_refused(tmp_path: Path) -> None:
    write_stream(pa.table({"image": IMAGES}), tmp_path / "a.arrow")
    data = (tmp_path / "a.arrow").read_bytes()
    message = read_message(lambda at, n_bytes: data[at : at + n_bytes], 0, len(data))
    assert message is not None
    # The header omits default values: let the field point to another number, which is not 0.
    damage(tmp_path / "a.arrow", 8 + message.header._slots + 4, b"\x04\0")
    assert "it was written on a big-endian machine" in refusal(tmp_path, "a.arrow")
