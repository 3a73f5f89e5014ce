"""Tables: the order of rows, types of images, labels, and changes."""

from __future__ import annotations

import datetime
import os
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurepress.errors import SourceError, StorageError
from featurepress.settings import ImageSettings, ListingSettings
from featurepress.sources import Listing
from featurepress.sources.tables.table import TableSource
from featurepress.specs import SourceSpec
from tests.servers.s3 import FastS3
from tests.sources.listed import failure
from tests.sources.tables.tables import ARROW, FORMATS, hugging_face, write_parquet, write_stream

IMAGES = [b"%d" % i * (i + 1) for i in range(10)]
every_format = pytest.mark.parametrize("name", FORMATS)


def source(base: Path, location: str, *, limits: ImageSettings | None = None, **options: Any) -> TableSource:
    return TableSource(SourceSpec("table", location, str(base), options), limits)


def write(base: Path, name: str, **columns: Any) -> None:
    FORMATS[name](pa.table(columns), base / name)


def n_open_below(folder: Path) -> int:
    """Return the number of open files of this process below a folder."""
    return sum(file.path.startswith(f"{folder}/") for file in psutil.Process().open_files())


# -- rows ----------------------------------------------------------------------------------------------------


@every_format
def test_rows_are_listed_in_order_and_read(tmp_path: Path, name: str) -> None:
    write(tmp_path, name, image=IMAGES)
    one = source(tmp_path, name)
    refs = list(one.list())
    assert [ref.uri for ref in refs] == [f"{name}#row={i}" for i in range(10)]
    assert [ref.key for ref in refs] == [f"{name}#{i:016d}".encode() for i in range(10)]
    status = (tmp_path / name).stat()
    assert {ref.version for ref in refs} == {f"{status.st_mtime_ns}-{status.st_size}"}
    assert all(ref.source == 0 and ref.fields == () and ref.problem is None for ref in refs)
    assert [one.read(ref) for ref in refs] == IMAGES


@every_format
def test_a_listing_continues_after_any_key(tmp_path: Path, name: str) -> None:
    write(tmp_path, name, image=IMAGES, label=[str(i) for i in range(10)])
    one = source(tmp_path, name, label_column="label", brings_label=True)
    refs = list(one.list())
    assert [ref.fields for ref in refs] == [(str(i),) for i in range(10)]
    for i, ref in enumerate(refs):
        assert list(one.list(ref.order)) == refs[i + 1 :]
        assert list(one.list(ref.order + b"\0")) == refs[i + 1 :]
        assert list(one.list(ref.order[:-1])) == [r for r in refs if r.order > ref.order[:-1]]
    assert list(one.list(b"\xff")) == []


@pytest.mark.parametrize("name", ARROW)
def test_sizes_of_arrow_tables_are_exact(tmp_path: Path, name: str) -> None:
    write(tmp_path, name, image=IMAGES)
    assert [ref.size for ref in source(tmp_path, name).list()] == [len(image) for image in IMAGES]


def test_sizes_of_parquet_are_the_means_of_row_groups(tmp_path: Path) -> None:
    images = [b"x" * 1000] * 4 + [b"y" * 3000] * 4
    plain = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    write_parquet(pa.table({"image": images}), tmp_path / "a.parquet", **plain)
    sizes = [ref.size for ref in source(tmp_path, "a.parquet").list()]
    assert sizes == [pytest.approx(1000, rel=0.05)] * 4 + [pytest.approx(3000, rel=0.05)] * 4


def test_a_mean_above_the_limit_refuses_no_image(tmp_path: Path) -> None:
    write(tmp_path, "snappy.parquet", image=[b"x" * 100_000, b"small", b"y" * 100_000])
    one = source(tmp_path, "snappy.parquet", limits=ImageSettings(max_bytes=1000))
    refs = list(one.list())
    assert all(ref.size <= 1000 for ref in refs)
    assert one.read(refs[1]) == b"small"
    assert failure(one, refs[0]) == "too many bytes: 100000, above the limit of 1000 (--max-bytes)"


@every_format
@pytest.mark.parametrize(
    "kind",
    [pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(40)],
    ids=["binary", "large", "view", "fixed"],
)
def test_every_type_of_bytes_can_contain_images(tmp_path: Path, name: str, kind: pa.DataType) -> None:
    images = [b"%039d;" % i for i in range(9)] if kind == pa.binary(40) else [b"short", b"long" * 20, b""] * 3
    write(tmp_path, name, n=list(range(9)), image=pa.array([*images, None], kind)[:9])
    one = source(tmp_path, name, image_column="image")
    refs = list(one.list())
    assert [one.read(ref) for ref in refs] == images
    if name in ARROW:
        assert [ref.size for ref in refs] == [len(image) for image in images]


@every_format
@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(5)])
def test_a_row_without_an_image_is_a_failure(tmp_path: Path, name: str, kind: pa.DataType) -> None:
    images = [b"image", None, b"other", None, b"third", *[None] * 8]
    write(tmp_path, name, image=pa.array(images, kind))
    one = source(tmp_path, name, image_column="image")
    refs = list(one.list())
    for ref, image in zip(refs, images, strict=True):
        if image is not None:
            assert (one.read(ref), ref.problem) == (image, None)
        else:
            assert failure(one, ref) == "no image in this row"
            assert ref.problem == ("no image in this row" if name in ARROW else None)


# -- structs of bytes and path -------------------------------------------------------------------------------


@every_format
def test_structs_of_bytes_and_path(tmp_path: Path, name: str) -> None:
    (tmp_path / "pics").mkdir()
    (tmp_path / "pics" / "a.jpg").write_bytes(b"beside")
    (tmp_path / "b.jpg").write_bytes(b"absolute")
    column = hugging_face(
        [
            (b"inside", "x.jpg"),
            (None, "pics/a.jpg"),
            (None, None),
            None,
            (None, str(tmp_path / "b.jpg")),
            (b"", None),
        ]
    )
    write(tmp_path, name, more=[{"n": 1}] * 6, hash=[b"h"] * 6, image=column)
    one = source(tmp_path, name)
    refs = list(one.list())
    assert [one.read(refs[i]) for i in (0, 1, 4, 5)] == [b"inside", b"beside", b"absolute", b""]
    assert [failure(one, refs[i]) for i in (2, 3)] == ["no image in this row"] * 2
    if name in ARROW:
        assert [ref.size for ref in refs] == [6, 0, 0, 0, 0, 0]
        assert [ref.problem is None for ref in refs] == [True, True, False, False, True, True]


def test_paths_start_from_the_folder_of_the_table(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.jpg").write_bytes(folder.encode())
        write(tmp_path / folder, "snappy.parquet", image=hugging_face([(None, "a.jpg")]))
    one = source(tmp_path, "*/*.parquet")
    assert [one.read(ref) for ref in one.list()] == [b"one", b"two"]


def test_limits_apply_to_the_file_of_a_path(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x" * 100)
    paths = ["a.jpg", "gone.jpg", "ftp://host/a.jpg", "s3://b/c.jpg", "a\0.jpg"]
    write(tmp_path, "snappy.parquet", image=hugging_face([(None, path) for path in paths]))
    one = source(tmp_path, "snappy.parquet", limits=ImageSettings(max_bytes=99))
    one.locations.readers["s3"] = lambda url: url.encode()
    a, gone, ftp, s3, zero = one.list()
    assert failure(one, a) == "too many bytes: 100, above the limit of 99 (--max-bytes)"
    assert failure(one, gone) == "vanished since listing"
    assert failure(one, ftp).startswith("the scheme 'ftp' cannot be read: allowed are paths and http://")
    assert one.read(s3) == b"s3://b/c.jpg"
    assert failure(one, zero) == "the path contains a zero byte"


# -- labels --------------------------------------------------------------------------------------------------

LABELS: dict[str, tuple[Any, list[str | None]]] = {
    "text": (pa.array(["cat", None, "dög"]), ["cat", None, "dög"]),
    "large text": (pa.array(["cat", None, ""], pa.large_string()), ["cat", None, ""]),
    "text view": (pa.array(["cat", None, "a longer text"], pa.string_view()), ["cat", None, "a longer text"]),
    "integer": (pa.array([7, None, -1]), ["7", None, "-1"]),
    "small integer": (pa.array([7, None, 255], pa.uint8()), ["7", None, "255"]),
    "number": (pa.array([1.0, None, 0.5]), ["1", None, "0.5"]),
    "truth": (pa.array([True, None, False]), ["true", None, "false"]),
    "date": (pa.array([datetime.date(2024, 2, 29), None, None]), ["2024-02-29", None, None]),
    "dictionary": (pa.array(["cat", None, "dog"]).dictionary_encode(), ["cat", None, "dog"]),
    "dictionary of numbers": (pa.array([5, None, 5]).dictionary_encode(), ["5", None, "5"]),
    "nothing": (pa.nulls(3), [None, None, None]),
}  # fmt: skip


@every_format
@pytest.mark.parametrize("kind", LABELS)
def test_labels_are_listed(tmp_path: Path, name: str, kind: str) -> None:
    labels, expected = LABELS[kind]
    write(tmp_path, name, before=[[1, 2], None, []], label=labels, image=IMAGES[:3])
    one = source(tmp_path, name, label_column="label", brings_label=True)
    refs = list(one.list())
    assert [ref.fields for ref in refs] == [(label,) for label in expected]
    assert [one.read(ref) for ref in refs] == IMAGES[:3]


@every_format
def test_labels_of_many_rows_match_their_images(tmp_path: Path, name: str) -> None:
    labels = [f"l{i % 7}" if i % 5 else None for i in range(1000)]
    write(tmp_path, name, image=[b"%d" % i for i in range(1000)], label=pa.array(labels).dictionary_encode())
    one = source(tmp_path, name, label_column="label", brings_label=True)
    refs = list(one.list())
    assert [ref.fields for ref in refs] == [(label,) for label in labels]
    assert list(one.list(refs[500].order)) == refs[501:]


def test_labels_are_left_out_unless_requested(tmp_path: Path) -> None:
    write(tmp_path, "stream.arrow", image=IMAGES, label=IMAGES)
    assert {ref.fields for ref in source(tmp_path, "stream.arrow", image_column="image").list()} == {()}


def test_the_listing_of_a_run_has_the_labels(tmp_path: Path) -> None:
    write(tmp_path, "snappy.parquet", image=IMAGES[:2], label=["cat", None])
    options = {"label_column": "label", "brings_label": True}
    spec = SourceSpec("table", "snappy.parquet", str(tmp_path), options)
    refs = list(Listing([spec], ListingSettings(label_column="label")))
    assert [(ref.uri, ref.fields) for ref in refs] == [
        ("snappy.parquet#row=0", ("cat",)),
        ("snappy.parquet#row=1", (None,)),
    ]


# -- several tables ------------------------------------------------------------------------------------------


def test_tables_are_listed_in_the_order_of_their_rows(tmp_path: Path) -> None:
    names = [
        "a.parquet",
        "a.parquet!.parquet",
        "a.parquet#0000000000000001.parquet",
        "b.parquet",
        "a.parquet$.parquet",
    ]
    for name in names:
        write_parquet(pa.table({"image": [name.encode(), b"1", b"2"]}), tmp_path / name)
    one = source(tmp_path, "*.parquet")
    refs = list(one.list())
    assert len(refs) == 15
    assert [ref.order for ref in refs] == sorted(ref.order for ref in refs)
    for i, ref in enumerate(refs):
        assert list(one.list(ref.order)) == refs[i + 1 :]
    assert {one.read(ref).decode() for ref in refs if ref.uri.endswith("#row=0")} == set(names)


def test_a_folder_of_tables(tmp_path: Path) -> None:
    write(tmp_path, "snappy.parquet", image=IMAGES[:1])
    write(tmp_path, "stream.arrow", image=IMAGES[1:2])
    (tmp_path / "README.md").touch()
    one = source(tmp_path, str(tmp_path))
    assert [one.read(ref) for ref in one.list()] == IMAGES[:2]
    assert one.skipped == {"not a table's name": 1}
    assert [ref.uri for ref in one.list(f"{tmp_path}/S".encode())] == [
        f"{tmp_path}/snappy.parquet#row=0",
        f"{tmp_path}/stream.arrow#row=0",
    ]
    assert one.skipped == {}


def test_many_tables_are_read_alternately(tmp_path: Path) -> None:
    for n in range(5):
        write_stream(pa.table({"image": [b"%d-%d" % (n, i) for i in range(10)]}), tmp_path / f"{n}.arrow")
    one = source(tmp_path, "*.arrow")
    refs = list(one.list())
    random.Random(0).shuffle(refs)
    for ref in refs:
        assert one.read(ref) == f"{ref.uri[0]}-{ref.uri[-1]}".encode()
        assert n_open_below(tmp_path) <= 2


def test_an_empty_table_has_no_images(tmp_path: Path) -> None:
    for name in FORMATS:
        write(tmp_path, name, image=pa.array([], pa.binary()))
        assert list(source(tmp_path, name).list()) == []
    with pytest.raises(SourceError, match=r"No image in 'file.arrow': it is empty\."):
        list(Listing([SourceSpec("table", "file.arrow", str(tmp_path))], ListingSettings()))


def test_no_such_table(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"There is no source 'gone.parquet': no such file or folder\."):
        list(source(tmp_path, "gone.parquet").list())


# -- reading -------------------------------------------------------------------------------------------------


@every_format
def test_rows_are_read_in_any_order_and_by_several_threads(tmp_path: Path, name: str) -> None:
    images = [os.urandom(2000) + b"%d" % i for i in range(300)]
    write(tmp_path, name, image=images)
    one = source(tmp_path, name)
    pairs = list(zip(one.list(), images, strict=True))
    random.Random(1).shuffle(pairs)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(one.read, [ref for ref, _ in pairs])) == [image for _, image in pairs]


def test_a_new_source_continues_in_the_open_table(tmp_path: Path) -> None:
    write(tmp_path, "snappy.parquet", image=IMAGES)
    refs = list(source(tmp_path, "snappy.parquet").list())
    for ref, image in zip(refs, IMAGES, strict=True):
        assert source(tmp_path, "snappy.parquet").read(ref) == image
        assert n_open_below(tmp_path) == 1


ONE_LARGE_ROW_GROUP = """
import sys
from featurepress.specs import SourceSpec
from featurepress.sources.tables.table import TableSource
def peak_bytes():  # ru_maxrss would include the parent process
    return 1024 * int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
source = TableSource(SourceSpec("table", sys.argv[1], "/", {}))
refs = list(source.list())
source.read(refs[0])
before = peak_bytes()
print(sum(len(source.read(ref)) for ref in refs), peak_bytes() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is read from /proc")
@pytest.mark.parametrize("ending", ["parquet", "arrow", "zstd.arrow"])
def test_a_row_group_is_never_in_memory_as_a_whole(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    table = pa.table({"image": [os.urandom(20_000) for _ in range(4000)]})
    if ending == "parquet":
        pq.write_table(table, path, row_group_size=4000, use_dictionary=False, write_batch_size=32)
    else:
        options = pa.ipc.IpcWriteOptions(compression="zstd" if "zstd" in ending else None)
        with pa.ipc.new_stream(path, table.schema, options=options) as writer:
            writer.write_table(table)
    del table
    done = subprocess.run(
        [sys.executable, "-c", ONE_LARGE_ROW_GROUP, str(path)],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    n_bytes, grown = map(int, done.stdout.split())
    assert n_bytes == 80_000_000
    assert grown < 20_000_000, grown


# -- changes -------------------------------------------------------------------------------------------------


@every_format
def test_a_table_that_changed_or_vanished_is_a_failure(tmp_path: Path, name: str) -> None:
    write(tmp_path, name, image=IMAGES)
    one = source(tmp_path, name)
    refs = list(one.list())
    assert one.read(refs[0]) == IMAGES[0]  # and the table is open now
    write(tmp_path, name, image=IMAGES[::-1])
    os.utime(tmp_path / name, ns=(1, 1))
    assert failure(one, refs[0]) == "changed since listing"
    assert failure(source(tmp_path, name), refs[1]) == "changed since listing"
    (tmp_path / name).unlink()
    assert failure(one, refs[0]) == "vanished since listing"


@every_format
def test_a_table_that_is_cut_short_while_it_is_read_has_changed(tmp_path: Path, name: str) -> None:
    write(tmp_path, name, image=[os.urandom(100_000) for _ in range(100)])
    one = source(tmp_path, name)
    refs = list(one.list())
    one.read(refs[0])
    os.truncate(tmp_path / name, 1000)
    assert failure(one, refs[50]) == "changed since listing"


def test_a_folder_that_is_gone_stops_the_run(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    write(tmp_path / "disk", "stream.arrow", image=IMAGES)
    one = source(tmp_path, "disk/*.arrow")
    ref = next(iter(one.list()))
    (tmp_path / "disk").rename(tmp_path / "away")
    with pytest.raises(StorageError, match="is gone"):
        one.read(ref)
    with pytest.raises(StorageError, match="is gone"):
        one.stat(ref)


@every_format
def test_stat(tmp_path: Path, name: str) -> None:
    write(tmp_path, name, image=IMAGES)
    one = source(tmp_path, name)
    refs = [ref._replace(source=3, fields=("x",)) for ref in one.list()]
    assert one.stat(refs[7]) is refs[7]
    write(tmp_path, name, image=[b"new" * 50] * 8)
    os.utime(tmp_path / name, ns=(5, 5))
    now = list(one.list())
    assert one.stat(refs[0]) == now[0]._replace(source=3, fields=("x",))
    assert one.stat(refs[7]) == now[7]._replace(source=3, fields=("x",))
    assert one.stat(refs[8]).problem == "vanished since listing"
    (tmp_path / name).unlink()
    assert one.stat(refs[0]).problem == "vanished since listing"


# -- in a bucket ---------------------------------------------------------------------------------------------


@every_format
def test_tables_in_a_bucket(tmp_path: Path, fast_s3: FastS3, name: str) -> None:
    images = [os.urandom(3000 * i) for i in range(30)]
    labels = [str(i) for i in range(30)]
    column = hugging_face([*((image, None) for image in images[:-1]), (None, "a.jpg")])
    write(tmp_path, name, image=column, label=labels)
    bucket = fast_s3.bucket()
    fast_s3.put(bucket, {f"t/{name}": (tmp_path / name).read_bytes(), "t/a.jpg": images[-1]})
    url = f"s3://{bucket}/t/*.{name.rpartition('.')[2]}"
    one = TableSource(SourceSpec("table", url, "/", {"label_column": "label", "brings_label": True}))
    refs = list(one.list())
    assert [ref.uri for ref in refs] == [f"s3://{bucket}/t/{name}#row={i}" for i in range(30)]
    assert [ref.fields for ref in refs] == [(label,) for label in labels]
    assert [one.read(ref) for ref in refs] == images
    assert [one.stat(ref) for ref in refs[:3]] == refs[:3]
    for i, ref in enumerate(refs):
        assert list(one.list(ref.order)) == refs[i + 1 :]
    fast_s3.put(bucket, {f"t/{name}": (tmp_path / name).read_bytes() + b"x"})
    fresh = TableSource(SourceSpec("table", url, "/", {"image_column": "image"}))
    assert failure(fresh, refs[0]) == "changed since listing"
