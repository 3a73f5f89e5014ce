"""Open, read and export a feature set, as users do."""

from __future__ import annotations

import csv
import json
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import featurepress as fp
from featurepress.errors import FeatureSetError, IncompleteError, PlanMismatchError, SettingError
from featurepress.features.export import ExportCsv
from featurepress.features.feature_set import FeatureSet
from featurepress.ledger import Plan
from featurepress.ledger.names import csv_name
from featurepress.process import Child
from featurepress.runs.verbs import run_plan
from featurepress.testing import InlineEngine, fake_backbone, memory_source
from tests.running import draft, draw, embed, names_below, read_failures, read_rows, snapshot

N_IMAGES, PART = 23, 5
NAMES = ("plain.jpg", "com,ma.jpg", 'quo"te.jpg', "new\nline.jpg", "früh 柠檬.jpg", " space .jpg", "[red]x[/].jpg")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("in"), N_IMAGES, broken=True)


@pytest.fixture(scope="module")
def features(source: Path, tmp_path_factory: pytest.TempPathFactory) -> FeatureSet:
    out = tmp_path_factory.mktemp("set") / "out"
    plan = draft(out, source, labels="parent", images_per_part=PART, max_failures=0.5)
    run_plan(plan, engine=InlineEngine())
    return fp.open_features(out)


@pytest.fixture(scope="module")
def unlabelled(source: Path, tmp_path_factory: pytest.TempPathFactory) -> FeatureSet:
    out = tmp_path_factory.mktemp("set") / "out"
    return run_plan(draft(out, source, max_failures=0.5), engine=InlineEngine())


def here(features: FeatureSet) -> Path:
    return Path(features.location)


# -- reading -------------------------------------------------------------------------------------------------


def test_all_features_come_as_one_array_in_the_order_of_the_listing(features: FeatureSet) -> None:
    X, rows = features.to_numpy(), read_rows(here(features))
    assert X.shape == (N_IMAGES, 12)
    assert X.dtype == np.float32
    assert X.flags.c_contiguous
    assert [row.tobytes() for row in X] == [row.features for row in rows.values()]
    assert list(features.uris) == list(rows) == sorted(rows)


def test_labels_and_uris_go_with_the_rows(features: FeatureSet) -> None:
    labels, uris = features.labels, features.uris
    assert labels is not None
    assert labels.shape == uris.shape == (N_IMAGES,)
    assert labels.dtype.kind == uris.dtype.kind == "U"
    assert [Path(uri).parent.name for uri in uris] == list(labels)


def test_a_set_without_labels_has_none(unlabelled: FeatureSet) -> None:
    assert unlabelled.labels is None
    assert [batch.y for batch in unlabelled.batches(7)] == [None] * 4
    assert unlabelled.schema.names == ["uri", "width", "height", "sha256", "features"]


@pytest.mark.parametrize("batch_size", [1, 2, 4, 5, 6, 23, 8192])
def test_batches_hold_all_rows_once_in_order_and_are_never_larger(features: FeatureSet, batch_size: int) -> None:
    batches = list(features.batches(batch_size))
    assert all(0 < len(batch.X) <= batch_size for batch in batches)
    assert all(len(batch.X) == len(batch.uris) for batch in batches)
    assert all(batch.X.dtype == np.float32 and batch.X.shape[1] == 12 for batch in batches)
    assert np.array_equal(np.concatenate([batch.X for batch in batches]), features.to_numpy())
    assert np.array_equal(np.concatenate([batch.uris for batch in batches]), features.uris)
    labels = [label for batch in batches if batch.y is not None for label in batch.y]
    assert features.labels is not None
    assert labels == list(features.labels)


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_holds_at_least_one_row(features: FeatureSet, batch_size: int) -> None:
    with pytest.raises(SettingError, match="at least 1"):
        next(features.batches(batch_size))


def test_a_table_has_the_requested_columns(features: FeatureSet) -> None:
    whole = features.to_table()
    assert whole.schema.equals(features.schema)
    assert whole.column_names == ["uri", "label", "width", "height", "sha256", "features"]
    assert len(whole) == N_IMAGES
    some = features.to_table(["sha256", "uri"])
    assert some.column_names == ["sha256", "uri"]
    assert some["uri"].to_pylist() == list(features.uris)


def test_failures_are_a_table(features: FeatureSet) -> None:
    failures = features.failures
    assert failures.column_names == ["uri", "stage", "reason"]
    assert [tuple(row.values()) for row in failures.to_pylist()] == read_failures(here(features))
    assert failures.num_rows == 3


def test_a_set_without_failures_has_an_empty_table(tmp_path: Path) -> None:
    one = run_plan(draft(tmp_path / "out", draw(tmp_path / "in", 2)), engine=InlineEngine())
    assert one.failures.num_rows == 0
    assert one.failures.column_names == ["uri", "stage", "reason"]


def test_the_repr_and_the_size_of_a_set(features: FeatureSet) -> None:
    assert repr(features) == f"<FeatureSet '{features.location}': 23 x 12, fake, complete>"
    assert len(features) == N_IMAGES
    assert features.bytes == sum(path.stat().st_size for path in here(features).glob("features/*"))
    assert features.fingerprint == fake_backbone().fingerprint


def test_reading_starts_no_threads(features: FeatureSet) -> None:
    """A process that ended while Arrow's threads were starting was sometimes aborted, for example `info`."""
    child = Child()
    try:
        before, after = child.call(count_threads, features.location)
    finally:
        child.close()
    assert before == after


def count_threads(location: str) -> tuple[int, int]:
    import pyarrow.parquet  # noqa: F401 - has threads of its own from the start

    before = len(os.listdir("/proc/self/task"))
    features = fp.open_features(location)
    features.to_numpy()
    features.to_table()
    assert features.failures.num_rows
    assert features.labels is not None
    assert sum(len(batch.X) for batch in features.batches(3)) == len(features)
    return before, len(os.listdir("/proc/self/task"))


# -- opening -------------------------------------------------------------------------------------------------


def test_opening_changes_nothing(features: FeatureSet) -> None:
    before = snapshot(here(features))
    fp.open_features(str(here(features))).to_numpy()
    assert snapshot(here(features)) == before


def test_a_location_without_a_set_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for location in (tmp_path, tmp_path / "no", tmp_path / "file"):
        with pytest.raises(FeatureSetError, match="is not a feature set") as caught:
            fp.open_features(location)
        assert str(location) in str(caught.value)
        assert not isinstance(caught.value, IncompleteError)


def test_an_unfinished_set_is_refused_unless_allowed(tmp_path: Path, source: Path) -> None:
    out = tmp_path / "a folder with spaces"
    run_plan(draft(out, source, images_per_part=PART, max_failures=1.0), engine=InlineEngine())
    (out / "manifest.json").unlink()
    (out / "features" / "part-00000002.parquet").unlink()
    with pytest.raises(IncompleteError) as caught:
        fp.open_features(out)
    assert f"featurepress resume {shlex.quote(str(out))}" in str(caught.value)
    part = fp.open_features(out, allow_incomplete=True)
    assert not part.is_complete
    assert len(part) == len(part.to_numpy()) == len(read_rows(out))
    assert repr(part).endswith("incomplete>")


# -- with other tools ----------------------------------------------------------------------------------------


def test_pandas_reads_the_parts(features: FeatureSet) -> None:
    frame = pd.read_parquet(here(features) / "features")
    assert list(frame.columns) == features.schema.names
    X = np.stack(frame["features"].to_list())
    assert X.dtype == np.float32
    assert np.array_equal(X, features.to_numpy())


def ask(query: str) -> list[tuple[Any, ...]]:
    with duckdb.connect() as database:
        return database.execute(query).fetchall()


def test_duckdb_reads_the_parts(features: FeatureSet) -> None:
    glob = here(features) / "features" / "*.parquet"
    query = f"SELECT label, count(*), count(DISTINCT uri) FROM '{glob}' GROUP BY label ORDER BY label"
    counts = ask(query)
    labels = features.labels
    assert labels is not None
    assert counts == [(label, n, n) for label in sorted(set(labels)) if (n := int((labels == label).sum()))]
    (first,) = ask(f"SELECT features FROM '{glob}' ORDER BY uri LIMIT 1")[0]
    assert np.array_equal(np.array(first, np.float32), features.to_numpy()[0])


def test_arrow_reads_the_parts_as_one_dataset(features: FeatureSet) -> None:
    table = pq.read_table(here(features) / "features")
    assert table.replace_schema_metadata().equals(features.to_table())
    assert table.schema.field("features").type == pa.list_(pa.float32(), 12)


def test_the_failures_are_read_by_a_glob(features: FeatureSet) -> None:
    rows = ask(f"SELECT * FROM '{here(features)}/failures/*.parquet' ORDER BY uri")
    assert rows == sorted(read_failures(here(features)))


# -- CSV -----------------------------------------------------------------------------------------------------


def read_csv(paths: Sequence[Path]) -> tuple[list[str], list[list[str]]]:
    """Read CSV files with the standard library; return the header, the same in each, and all rows."""
    rows, headers = [], []
    for path in paths:
        with path.open(newline="", encoding="utf-8") as file:
            header, *body = csv.reader(file)
        headers.append(header)
        rows += body
    assert headers == [headers[0]] * len(paths)
    return headers[0], rows


def export(out: Path, *sources: Any, parts: int = 1, **options: Any) -> FeatureSet:
    plan = draft(out, *sources, format="csv", parts=parts, max_failures=1.0, **{"images_per_part": PART, **options})
    return run_plan(plan, engine=InlineEngine())


def assert_csv_agrees(out: Path, features: FeatureSet) -> list[list[str]]:
    header, rows = read_csv(sorted(out.glob("csv/*.csv")))
    assert header == ["uri", *features.plan.field_names, "features"]
    assert [row[0] for row in rows] == list(features.uris)
    X = np.array([json.loads(row[-1]) for row in rows], np.float32)
    assert X.tobytes() == features.to_numpy().tobytes()
    if features.labels is not None:
        assert [row[1] for row in rows] == list(features.labels)
    return rows


@pytest.mark.parametrize("labels", ["none", "parent"])
@pytest.mark.parametrize("parts", [1, 5, 23, 40])
def test_csv_files_hold_all_rows_once_in_order_bit_equal(
    tmp_path: Path, source: Path, parts: int, labels: str
) -> None:
    features = export(tmp_path / "out", source, parts=parts, labels=labels)
    names = [csv_name(i) for i in range(parts)]
    assert [name for name in names_below(tmp_path / "out") if "csv" in name] == names
    assert_csv_agrees(tmp_path / "out", features)
    sizes = [len(read_csv([tmp_path / "out" / name])[1]) for name in names]
    assert sum(sizes) == N_IMAGES
    assert max(sizes) - min(sizes) <= 1


def test_csv_of_a_flatten_set_of_the_real_model(tmp_path: Path) -> None:
    features = embed(
        draw(tmp_path / "in", 3),
        tmp_path / "out",
        pooling="flatten",
        labels="parent",
        format="csv",
        parts=2,
        precision="float32",
        workers=1,
    )
    assert features.n_features == 11_520
    assert_csv_agrees(tmp_path / "out", features)


def test_unusual_names_are_kept_in_csv(tmp_path: Path, source: Path) -> None:
    data = next(source.rglob("0*.jpg")).read_bytes()
    features = export(tmp_path / "out", memory_source(dict.fromkeys(NAMES, data)))
    assert {row[0] for row in assert_csv_agrees(tmp_path / "out", features)} == set(NAMES)


def test_an_interrupted_export_is_finished_by_the_same_call(tmp_path: Path, source: Path) -> None:
    out = tmp_path / "out"
    features = export(out, source, parts=4)
    before = snapshot(out / "csv")
    for name in ("manifest.json", csv_name(1), csv_name(3)):
        (out / name).unlink()
    export(out, source, parts=4)
    after = snapshot(out / "csv")
    assert {name: value[1] for name, value in after.items()} == {name: value[1] for name, value in before.items()}
    assert after["part-00000.csv"] == before["part-00000.csv"]  # not written again
    assert_csv_agrees(out, features)


def test_an_export_reports_progress_to_its_engine(tmp_path: Path, source: Path) -> None:
    """Otherwise an engine would kill a worker that writes a large file, as if it hung."""
    export(tmp_path / "out", source)
    plan: Plan = draft(tmp_path / "out", source)
    beats: list[Any] = []
    child = Child()
    try:
        assert child.call(ExportCsv(1), plan, 0, on_message=beats.append) == N_IMAGES
    finally:
        child.close()
    assert len(beats) >= 5


def test_sets_of_other_feature_spaces_are_not_compared(tmp_path: Path) -> None:
    source = draw(tmp_path / "in", 3)
    options = {"precision": "float32", "workers": 1}
    one = embed(source, tmp_path / "avg", **options)
    same = embed(source, tmp_path / "same", limit=2, **options)
    other = embed(source, tmp_path / "max", pooling="max", **options)
    one.require_comparable(same)
    with pytest.raises(PlanMismatchError, match=r"cannot be compared; the first has pooling: 'avg', not 'max'\."):
        one.require_comparable(other)
