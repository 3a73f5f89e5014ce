"""Parts as Parquet files, as other readers see them."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import duckdb
import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from featurepress.errors import StorageError
from featurepress.ledger.names import part_name
from featurepress.storage import FolderStorage
from tests.contracts.test_parts import N_FEATURES, draft, write


def write_two(folder: Path, *, n: int = 50) -> npt.NDArray[np.float32]:
    storage = FolderStorage(str(folder))
    parts = [draft(n, shard=shard, field_names=("label",), seed=shard) for shard in range(2)]
    for part in parts:
        write(storage, part)
    return np.concatenate([part.features for part in parts])


def test_zstd_and_no_dictionary(tmp_path: Path) -> None:
    write_two(tmp_path)
    footer = pq.read_metadata(tmp_path / part_name(0))
    assert footer.num_row_groups == 1
    for i in range(footer.num_columns):
        column = footer.row_group(0).column(i)
        assert column.compression == "ZSTD"
        assert not column.has_dictionary_page
        assert not {"PLAIN_DICTIONARY", "RLE_DICTIONARY"} & set(column.encodings)


@pytest.mark.parametrize("at_once", [5, 16, 40])
def test_large_parts_have_several_row_groups_and_every_row(tmp_path: Path, at_once: int) -> None:
    n_features = 65_536  # a row group holds 16 rows at least
    part = draft(40, shard=0, n_features=n_features)
    write(FolderStorage(str(tmp_path)), part, at_once=at_once)
    footer = pq.read_metadata(tmp_path / part_name(0))
    assert [footer.row_group(i).num_rows for i in range(footer.num_row_groups)] == [16, 16, 8]
    table = pq.read_table(tmp_path / part_name(0))
    assert table["uri"].to_pylist() == [row.ref.uri for row in part.rows]
    features = table["features"].combine_chunks().flatten().to_numpy()
    assert features.tobytes() == part.features.tobytes()


def test_the_footer_is_json(tmp_path: Path) -> None:
    write_two(tmp_path)
    about = json.loads(pq.read_metadata(tmp_path / part_name(1)).metadata[b"featurepress"])
    assert about["receipt"]["shard"] == 1
    assert about["failures"][1] == ["ü.jpg", "read", "vanished"]


def test_a_glob_of_other_readers_sees_every_row(tmp_path: Path) -> None:
    expected = write_two(tmp_path)
    pattern = str(tmp_path / "features" / "*.parquet")
    rows = duckdb.execute(f"select features::float[{N_FEATURES}] as x from '{pattern}' order by filename, sha256")
    np.testing.assert_array_equal(np.array([row[0] for row in rows.fetchall()], np.float32), expected)
    frame = pd.read_parquet(tmp_path / "features")
    np.testing.assert_array_equal(np.stack(frame["features"].tolist()), expected)
    assert ds.dataset(tmp_path / "features").count_rows() == 100


def test_a_temporary_folder_that_takes_nothing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    n_features = 65_536
    part = draft(40, n_features=n_features)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(StorageError, match=r"temporary folder .*gone.* set TMPDIR"):
        write(FolderStorage(str(tmp_path)), part)
    assert list(tmp_path.iterdir()) == []
