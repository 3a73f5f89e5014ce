"""Exported files, read with common libraries, and refused requests."""

from __future__ import annotations

import csv
import json
import zipfile
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import featurepress as fp
from featurepress.errors import DestinationError, FeatureSetError, IncompleteError, SettingError
from featurepress.features.feature_set import FeatureSet
from featurepress.runs.verbs import run_plan
from featurepress.testing import InlineEngine
from tests.features.feature_sets import FORMATS, N_ROWS, READERS, assert_same_rows, labelled, made, numbers
from tests.running import draft, draw, names_below, snapshot

NAMES = (
    "plain.jpg",
    "com,ma.jpg",
    'quo"te.jpg',
    "new\nline.jpg",
    "früh 柠檬 🍋.jpg",
    " space .jpg",
    "e\u0301.jpg",
    "=1+1.jpg",
)

every_format = pytest.mark.parametrize("kind", FORMATS)


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> FeatureSet:
    return labelled(tmp_path_factory.mktemp("set") / "out")


def here(features: FeatureSet) -> Path:
    return Path(features.location)


# -- rows ----------------------------------------------------------------------------------------------------


@every_format
def test_files_have_all_rows_in_order_bit_for_bit(tmp_path: Path, features: FeatureSet, kind: str) -> None:
    target = tmp_path / f"x.{kind}"
    assert fp.export(features, target) == [str(target)]
    assert names_below(tmp_path) == [f"x.{kind}"]
    assert assert_same_rows([str(target)], kind, features) == [N_ROWS]


def test_a_set_can_be_named_by_its_location(tmp_path: Path, features: FeatureSet) -> None:
    assert fp.export(features.location, str(tmp_path / "x.npy")) == [str(tmp_path / "x.npy")]
    assert np.array_equal(np.load(tmp_path / "x.npy"), features.to_numpy())


@every_format
@pytest.mark.parametrize("parts", [2, 5, 23, 40])
def test_files_in_order_have_all_rows(tmp_path: Path, features: FeatureSet, kind: str, parts: int) -> None:
    files = fp.export(features, tmp_path / f"a.b.{kind}", parts=parts)
    assert files == [str(tmp_path / f"a.b-{i:05d}-of-{parts:05d}.{kind}") for i in range(parts)]
    assert names_below(tmp_path) == [Path(file).name for file in files]
    sizes = assert_same_rows(files, kind, features)
    assert max(sizes) - min(sizes) <= 1


def test_csv_files_equal_those_of_a_run_with_format_csv(tmp_path: Path) -> None:
    source = draw(tmp_path / "in", 7)
    run = run_plan(draft(tmp_path / "run", source, format="csv", parts=3), engine=InlineEngine())
    files = fp.export(run, tmp_path / "x.csv", parts=3)
    written = sorted((tmp_path / "run" / "csv").iterdir())
    assert [Path(file).read_bytes() for file in files] == [path.read_bytes() for path in written]


@every_format
def test_files_of_a_set_without_rows_can_be_read(tmp_path: Path, kind: str) -> None:
    empty = made(tmp_path / "set", numbers(0), label=[])
    for parts in (1, 2):
        for file in fp.export(empty, tmp_path / f"{parts}.{kind}", parts=parts):
            X, uris = READERS[kind](Path(file))
            assert len(X) == len(uris or ()) == 0
            if kind.startswith("np"):
                assert X.shape == (0, 6)
                assert X.dtype == np.float32


@every_format
def test_unusual_names_are_kept(tmp_path: Path, kind: str) -> None:
    odd = made(tmp_path / "set", numbers(len(NAMES)), list(NAMES), label=list(NAMES[::-1]))
    files = fp.export(odd, tmp_path / f"früh 柠檬.{kind}")
    assert_same_rows(files, kind, odd)


def test_numbers_of_every_size_are_kept_in_text(tmp_path: Path) -> None:
    values = np.array([[0.0, 1.0, 1e-45, 3.4028235e38, -1.1754944e-38, 0.1, -16777216, 1 / 3]], np.float32)
    one = made(tmp_path / "set", values)
    assert_same_rows(fp.export(one, tmp_path / "x.csv"), "csv", one)


# -- formats -------------------------------------------------------------------------------------------------


def test_npy_is_opened_without_reading_it(tmp_path: Path, features: FeatureSet) -> None:
    fp.export(features, tmp_path / "x.npy")
    X = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert isinstance(X, np.memmap)
    assert (X.dtype, X.shape) == (np.dtype("<f4"), (N_ROWS, 12))
    assert X.flags.c_contiguous
    assert np.array_equal(X, features.to_numpy())


def test_npz_holds_labels_and_fields_by_name(tmp_path: Path) -> None:
    split: list[str | None] = ["train", None, "t", "", "test"]
    label: list[str | None] = ["a", "日本", "c" * 40, None, "e"]
    fields = made(tmp_path / "set", numbers(5), split=split, label=label)
    fp.export(fields, tmp_path / "x.npz")
    with np.load(tmp_path / "x.npz", allow_pickle=False) as arrays:
        assert sorted(arrays.files) == ["X", "split", "uris", "y"]
        assert arrays["y"].tolist() == ["a", "日本", "c" * 40, "", "e"]
        assert arrays["split"].tolist() == ["train", "", "t", "", "test"]
        assert (arrays["y"].dtype, arrays["split"].dtype) == (np.dtype("<U40"), np.dtype("<U5"))
    with zipfile.ZipFile(tmp_path / "x.npz") as archive:
        assert archive.testzip() is None
        assert {member.compress_type for member in archive.infolist()} == {zipfile.ZIP_STORED}


def test_npz_of_a_set_without_labels_has_no_y(tmp_path: Path) -> None:
    fp.export(made(tmp_path / "set", numbers(3)), tmp_path / "x.npz")
    with np.load(tmp_path / "x.npz") as arrays:
        assert sorted(arrays.files) == ["X", "uris"]


@pytest.mark.parametrize("name", ["X", "uris", "y"])
def test_a_field_with_the_name_of_an_array_is_refused(tmp_path: Path, name: str) -> None:
    fields: dict[str, Any] = {"label": ["a"] * 3, name: ["b"] * 3}
    clash = made(tmp_path / "set", numbers(3), **fields)
    with pytest.raises(SettingError, match=rf"The field '{name}' of .* cannot be an array of an \.npz"):
        fp.export(clash, tmp_path / "x.npz")
    assert not (tmp_path / "x.npz").exists()
    assert fp.export(clash, tmp_path / "x.parquet")


def test_csv_has_the_shape_of_the_notebook(tmp_path: Path) -> None:
    made_set = made(tmp_path / "set", np.array([[1, 0.5], [0, -2]], np.float32), ["a", "b,c"], label=["x", None])
    fp.export(made_set, tmp_path / "x.csv")
    with (tmp_path / "x.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["uri", "label", "features"]
    assert [[*row[:2], json.loads(row[2])] for row in rows] == [["a", "x", [1, 0.5]], ["b,c", "", [0, -2]]]


def test_pandas_reads_the_csv(tmp_path: Path, features: FeatureSet) -> None:
    fp.export(features, tmp_path / "x.csv")
    frame = pd.read_csv(tmp_path / "x.csv")
    assert list(frame.columns) == ["uri", "label", "features"]
    X = np.stack(frame["features"].map(json.loads).map(lambda row: np.array(row, np.float32)).to_list())
    assert np.array_equal(X, features.to_numpy())


def test_parquet_has_the_schema_of_the_parts(tmp_path: Path, features: FeatureSet) -> None:
    fp.export(features, tmp_path / "x.parquet")
    with pq.ParquetFile(tmp_path / "x.parquet") as file:
        assert file.schema_arrow.equals(features.schema)
        assert file.metadata.num_row_groups == 1  # though the parts have 5 rows each
        columns = [file.metadata.row_group(0).column(i) for i in range(file.metadata.num_columns)]
    by_name = {column.path_in_schema.partition(".")[0]: column for column in columns}
    assert {column.compression for column in columns} == {"ZSTD"}
    assert not by_name["features"].has_dictionary_page
    assert by_name["label"].has_dictionary_page
    assert pq.read_table(tmp_path / "x.parquet").equals(features.to_table())


def test_row_groups_have_about_16_mb(tmp_path: Path) -> None:
    many = made(tmp_path / "set", numbers(3_000, 4_096), rows_a_part=100)
    fp.export(many, tmp_path / "x.parquet")
    with pq.ParquetFile(tmp_path / "x.parquet") as file:
        sizes = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
    assert sum(sizes) == 3_000
    assert all(12 <= 4 * 4_096 * size / 2**20 <= 20 for size in sizes[:-1])


def test_duckdb_reads_parquet_and_csv(tmp_path: Path, features: FeatureSet) -> None:
    with duckdb.connect() as database:
        for kind in ("parquet", "csv"):
            fp.export(features, tmp_path / f"x.{kind}", parts=3)
            rows = database.execute(
                f"SELECT uri, label, features FROM '{tmp_path}/*.{kind}' ORDER BY uri"
            ).fetchall()
            assert [row[0] for row in rows] == list(features.uris)
            assert features.labels is not None
            assert [row[1] for row in rows] == list(features.labels)
            lists = [json.loads(row[2]) if kind == "csv" else row[2] for row in rows]
            assert np.array_equal(np.array(lists, np.float32), features.to_numpy())


def test_arrow_files_have_all_columns(tmp_path: Path, features: FeatureSet) -> None:
    fp.export(features, tmp_path / "x.arrow")
    with pa.memory_map(str(tmp_path / "x.arrow")) as file, pa.ipc.open_file(file) as reader:
        assert reader.schema.equals(features.schema)
        assert reader.read_all().equals(features.to_table())


def test_the_case_of_the_ending_is_ignored(tmp_path: Path, features: FeatureSet) -> None:
    assert fp.export(features, tmp_path / "X.NPY") == [str(tmp_path / "X.NPY")]
    assert np.array_equal(np.load(tmp_path / "X.NPY"), features.to_numpy())


# -- requests that are refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "hint"),
    [("x.txt", ""), ("x", ""), ("x.csv.gz", ""), (".npy", ""), ("x.parqet", "; did you mean '.parquet'?")],
)
def test_other_endings_are_refused(tmp_path: Path, features: FeatureSet, name: str, hint: str) -> None:
    with pytest.raises(SettingError) as caught:
        fp.export(features, tmp_path / name)
    start = "The 'to' setting (--to) must end in .npy, .npz, .csv, .parquet or .arrow. Got "
    assert str(caught.value).startswith(f"{start}'{tmp_path / name}'{hint}")


@pytest.mark.parametrize("parts", [0, -1, 2.0, "2", True, None, 100_000])
def test_parts_are_an_integer_of_at_least_1(tmp_path: Path, features: FeatureSet, parts: Any) -> None:
    with pytest.raises(SettingError) as caught:
        fp.export(features, tmp_path / "x.npy", parts=parts)
    assert str(caught.value) == f"The 'parts' setting must be an integer from 1 to 99999. Got {parts!r}."
    assert names_below(tmp_path) == []


@every_format
def test_nothing_is_overwritten(tmp_path: Path, features: FeatureSet, kind: str) -> None:
    target = tmp_path / f"x.{kind}"
    target.write_text("mine")
    with pytest.raises(DestinationError) as caught:
        fp.export(features, target)
    assert str(caught.value).startswith(f"'{target}' already exists.")
    assert target.read_text() == "mine"
    assert names_below(tmp_path) == [target.name]


def test_no_file_is_written_if_one_exists(tmp_path: Path, features: FeatureSet) -> None:
    last = tmp_path / "x-00002-of-00003.npy"
    last.write_text("mine")
    with pytest.raises(DestinationError, match=r"x-00002-of-00003\.npy' already exists"):
        fp.export(features, tmp_path / "x.npy", parts=3)
    (tmp_path / "x-00000-of-00003.npy").write_text("mine")
    with pytest.raises(DestinationError, match=r"x-00000-of-00003\.npy' and 1 more of the files already exist"):
        fp.export(features, tmp_path / "x.npy", parts=3)
    assert names_below(tmp_path) == ["x-00000-of-00003.npy", last.name]
    assert last.read_text() == "mine"


@pytest.mark.parametrize("folder", ["plan", "features", "failures", "receipts", "attempts", "csv", "features/deep"])
def test_a_file_in_a_folder_of_the_set_is_refused(tmp_path: Path, features: FeatureSet, folder: str) -> None:
    before = snapshot(here(features))
    (tmp_path / "link").symlink_to(here(features))
    for out in (here(features), tmp_path / "link", tmp_path / "no" / ".." / "link"):
        with pytest.raises(DestinationError, match="is a folder of the feature set itself"):
            fp.export(features, out / folder / "x.parquet")
    assert snapshot(here(features)) == before


def test_a_file_beside_the_folders_of_the_set_is_written(tmp_path: Path) -> None:
    small = made(tmp_path / "set", numbers(3))
    fp.export(small, tmp_path / "set" / "x.parquet")
    fp.export(small, tmp_path / "features" / "x.parquet")
    assert len(fp.open_features(tmp_path / "set")) == 3


def test_an_unfinished_set_is_refused_unless_it_was_opened_with_allow_incomplete(tmp_path: Path) -> None:
    made(tmp_path / "set", numbers(6), complete=False)
    with pytest.raises(IncompleteError, match="featurepress resume"):
        fp.export(tmp_path / "set", tmp_path / "x.npy")
    fp.export(fp.open_features(tmp_path / "set", allow_incomplete=True), tmp_path / "x.npy")
    assert np.load(tmp_path / "x.npy").shape == (6, 6)
    with pytest.raises(FeatureSetError, match="is not a feature set"):
        fp.export(tmp_path, tmp_path / "y.npy")


def test_a_destination_that_cannot_be_written_is_refused(tmp_path: Path, features: FeatureSet) -> None:
    (tmp_path / "file").write_text("x")
    for target in (tmp_path / "file" / "x.npy", tmp_path / "file" / "deep" / "x.npy", Path("/proc/x.npy")):
        with pytest.raises(DestinationError) as caught:
            fp.export(features, target)
        assert str(caught.value).startswith("Cannot ")
        assert str(target.parent) in str(caught.value)
        assert str(caught.value).endswith("Choose another --to.")
    assert names_below(tmp_path) == ["file"]


@pytest.mark.parametrize("url", ["ftp://host/x.npy", "s3://x.npy", "az://account/x.npy"])
def test_a_url_of_another_kind_is_refused(features: FeatureSet, url: str) -> None:
    with pytest.raises(DestinationError, match=url.partition("://")[0]):
        fp.export(features, url)
