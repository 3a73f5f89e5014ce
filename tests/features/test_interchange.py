"""Libraries that speak Arrow read a feature set directly; a notebook shows it as HTML."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from featurepress.errors import SettingError
from featurepress.features.feature_set import FeatureSet
from tests.features.feature_sets import N_ROWS, labelled, made, numbers


@pytest.fixture
def features(tmp_path: Path) -> FeatureSet:
    return labelled(tmp_path / "features")


def test_pyarrow_reads_the_stream(features: FeatureSet) -> None:
    table = pa.table(features)
    assert table.schema == features.schema
    assert table.equals(features.to_table())


def test_the_stream_of_an_empty_set_has_the_schema(tmp_path: Path) -> None:
    empty = made(tmp_path / "empty", numbers(0))
    assert pa.table(empty).schema == empty.schema
    assert pa.table(empty).num_rows == 0


def test_pandas_gets_an_array_per_row(features: FeatureSet) -> None:
    frame = features.to_pandas()
    assert list(frame.columns) == features.schema.names
    assert np.stack(frame["features"].tolist()).tobytes() == features.to_numpy().tobytes()


def test_pandas_gets_only_the_requested_columns(features: FeatureSet) -> None:
    assert list(features.to_pandas(["label"]).columns) == ["label"]
    with pytest.raises(SettingError, match="nothing"):
        features.to_pandas(["nothing"])


def test_polars_reads_the_stream(features: FeatureSet) -> None:
    import polars as pl

    frame = pl.DataFrame(features)
    assert frame.height == N_ROWS
    assert frame["features"].to_numpy().tobytes() == features.to_numpy().tobytes()
    assert frame.group_by("label").len()["len"].sum() == N_ROWS


def test_duckdb_reads_the_stream_by_the_name_of_the_variable(features: FeatureSet) -> None:
    import duckdb

    rows = duckdb.execute("SELECT label, count(*) FROM features GROUP BY label ORDER BY label").fetchall()
    assert rows == [("fruit 0", 8), ("fruit 1", 8), ("fruit 2", 7)]


def test_datasets_reads_the_stream(features: FeatureSet) -> None:
    from datasets import Dataset

    dataset = Dataset(pa.table(features))
    assert dataset[3]["uri"] == features.uris[3]
    assert np.array(dataset[3]["features"], np.float32).tobytes() == features.to_numpy()[3].tobytes()


def test_a_notebook_shows_facts_and_the_first_rows(features: FeatureSet) -> None:
    html = features._repr_html_()
    assert features.location in html
    assert features.fingerprint in html
    assert html.count("<tr>") == 8 + 1 + 5  # facts, head, rows
    assert f"<td>{features.uris[0]}</td>" in html


def test_a_notebook_shows_no_markup_of_the_data(tmp_path: Path) -> None:
    features = made(tmp_path / "features", numbers(1), ["<script>alert(1)</script>.jpg"])
    assert "<script>" not in features._repr_html_()
