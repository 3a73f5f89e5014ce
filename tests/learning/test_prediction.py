"""Predictions: the same from images and from features, resumable, refused for other models and feature spaces."""

from __future__ import annotations

import csv
import json
import shutil
import signal
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import psutil
import pyarrow as pa
import pytest

import featurepress as fp
from featurepress.analysis import Classifier
from featurepress.errors import (
    AnalysisError,
    DestinationError,
    IncompleteError,
    PlanMismatchError,
    SettingError,
    SourceError,
    StoppedError,
    TooManyFailuresError,
)
from featurepress.features.feature_set import FeatureSet
from featurepress.learning import predictions
from featurepress.learning.model import TrainedModel, open_model
from featurepress.ledger import Plan
from featurepress.ledger.names import PREDICTIONS_SUMMARY
from featurepress.storage import FolderStorage
from tests.features.feature_sets import made, numbers
from tests.running import Watched, draw, embed, interrupt, read_json, snapshot, started, wait_until
from tests.servers.s3 import FastS3

Result = TypeVar("Result")

EMBED_SETTINGS = {"model": "embedded", "precision": "float32", "pooling": "avg"}


def train(features: FeatureSet, out: Path, **embed_settings: Any) -> TrainedModel:
    """Write a model of the labels of a set, or of three invented ones."""
    labels = features.labels
    y = np.array([f"kind {i % 3}" for i in range(len(features))]) if labels is None else labels
    projection = None
    if features.plan.backbone.projection:
        from featurepress.learning.reduced import read_projection

        projection = read_projection(features.plan)
    classifier = Classifier(regularization=1e-3).fit(features.to_numpy(), y)
    return TrainedModel(
        classifier, features.plan.backbone, projection, embed_settings={**EMBED_SETTINGS, **embed_settings}
    ).save(out)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Draw images, embed them into 6 parts, and train: models of the features, of reduced and of flat ones."""
    folder = tmp_path_factory.mktemp("work")
    draw(folder / "in", 90)
    (folder / "in" / "Kiwi" / 'früh 柠檬, "süß".jpg').write_bytes(
        next((folder / "in" / "Kiwi").glob("*.jpg")).read_bytes()
    )
    options: dict[str, Any] = {"labels": "parent", "images_per_part": 16, "precision": "float32"}
    features = embed(str(folder / "in"), folder / "features", **options)
    train(features, folder / "model")
    fp.reduce(features, folder / "reduced", n_components=20)
    train(fp.open_features(folder / "reduced"), folder / "reduced-model")
    return folder


def test_images_are_embedded_and_classified(work: Path, tmp_path: Path) -> None:
    result = fp.predict(work / "model", str(work / "in"), tmp_path / "out", images_per_part=16)
    features, model = fp.open_features(work / "features"), open_model(work / "model")
    table = result.to_table()
    assert table.column_names == ["uri", "label", "probability"]
    assert table["uri"].to_pylist() == features.uris.tolist()
    shares = model.predict_proba(features.to_numpy())
    assert table["label"].to_pylist() == model.labels[shares.argmax(axis=1)].tolist()
    np.testing.assert_allclose(table["probability"].to_numpy(), shares.max(axis=1), atol=1e-6)
    assert str(table["probability"].type) == "float"
    assert len(result) == result.summary["images"] == 91
    assert sum(result.counts.values()) == 91
    assert result.location == str(tmp_path / "out")
    assert result.images_per_second > 0
    assert any("früh 柠檬" in uri for uri in table["uri"].to_pylist())


def test_features_are_classified_and_not_changed(work: Path, tmp_path: Path) -> None:
    before = snapshot(work / "features")
    result = fp.predict(work / "model", work / "features", tmp_path / "out", top_k=3)
    assert snapshot(work / "features") == before
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["predictions"]
    table = result.to_table()
    assert table.column_names[3:] == [f"{what}_{i}" for i in (1, 2, 3) for what in ("label", "probability")]
    assert table["label"].equals(table["label_1"])
    model, X = open_model(work / "model"), fp.open_features(work / "features").to_numpy()
    ranked = np.sort(model.predict_proba(X), axis=1)[:, ::-1]
    for i in range(3):
        np.testing.assert_allclose(table[f"probability_{i + 1}"].to_numpy(), ranked[:, i], atol=1e-6)
    again = fp.predict(model, fp.open_features(work / "features"), tmp_path / "out", top_k=3)
    assert again.to_table().equals(table)
    assert again.summary == result.summary


def test_below_the_threshold_the_label_is_unknown(work: Path, tmp_path: Path) -> None:
    plain = fp.predict(work / "model", work / "features", tmp_path / "plain").to_table()
    threshold = float(np.median(plain["probability"].to_numpy()))
    result = fp.predict(work / "model", work / "features", tmp_path / "out", threshold=threshold)
    table = result.to_table()
    known = np.array(table["label"].to_pylist()) != predictions.UNKNOWN
    assert np.array_equal(known, plain["probability"].to_numpy() >= threshold)
    assert table["label_1"].equals(plain["label"])
    assert 0 < result.counts["unknown"] == result.summary["unknown"] == (~known).sum() < len(table)


def test_csv_holds_the_same_as_parquet(work: Path, tmp_path: Path) -> None:
    kinds = {}
    for kind in ("parquet", "csv"):
        kinds[kind] = fp.predict(work / "model", work / "features", tmp_path / kind, file_format=kind, top_k=2)
    assert kinds["csv"].to_table().equals(kinds["parquet"].to_table())
    rows: list[dict[str, str]] = []
    for path in sorted((tmp_path / "csv" / "predictions").glob("*.csv")):
        with path.open(newline="", encoding="utf-8") as file:
            rows += csv.DictReader(file)
    assert [row["uri"] for row in rows] == kinds["csv"].to_table()["uri"].to_pylist()
    assert [np.float32(row["probability_2"]) for row in rows] == (
        kinds["parquet"].to_table()["probability_2"].to_pylist()
    )


def test_a_model_of_reduced_features_predicts_images_and_both_sets(work: Path, tmp_path: Path) -> None:
    model = work / "reduced-model"
    tables = [
        fp.predict(model, str(sources), tmp_path / name, images_per_part=16).to_table()
        if name == "images"
        else fp.predict(model, sources, tmp_path / name).to_table()
        for name, sources in (("images", work / "in"), ("set", work / "features"), ("reduced", work / "reduced"))
    ]
    for table in tables[1:]:
        assert table.select(["uri", "label"]).equals(tables[0].select(["uri", "label"]))
        np.testing.assert_allclose(table["probability"].to_numpy(), tables[0]["probability"].to_numpy(), atol=1e-4)


def test_a_model_in_memory_and_a_flatten_model(work: Path, tmp_path: Path) -> None:
    flat = embed(str(work / "in" / "Kiwi"), tmp_path / "flat", pooling="flatten", precision="float32")
    saved = train(flat, tmp_path / "model", pooling="flatten")
    result = fp.predict(saved, str(work / "in" / "Kiwi"), tmp_path / "out")
    assert result.features.n_features == 11520
    unsaved = replace(saved, location="", sha256="")
    again = fp.predict(unsaved, tmp_path / "flat", tmp_path / "again")
    assert again.to_table()["label"].equals(result.to_table()["label"])


def test_broken_images_are_failures_and_too_many_are_an_error(work: Path, tmp_path: Path) -> None:
    draw(tmp_path / "in", 20, broken=True)
    with pytest.raises(TooManyFailuresError, match="3 of 23 images failed") as caught:
        fp.predict(work / "model", str(tmp_path / "in"), tmp_path / "out")
    result = caught.value.result
    assert (len(result), result.summary["failed"], result.failures.num_rows) == (20, 3, 3)
    assert read_json(tmp_path / "out" / "predictions" / "summary.json")["status"] == "complete"
    calm = fp.predict(work / "model", str(tmp_path / "in"), tmp_path / "out", max_failures=1.0)
    assert len(calm) == 20


def test_a_part_of_failures_alone_has_no_rows(work: Path, tmp_path: Path) -> None:
    draw(tmp_path / "in", 4)
    for i in range(4):
        (tmp_path / "in" / f"zz{i}.jpg").write_bytes(b"")
    for kind in ("parquet", "csv"):
        out = tmp_path / kind
        result = fp.predict(
            work / "model", str(tmp_path / "in"), out, images_per_part=4, max_failures=1.0, file_format=kind
        )
        assert (len(result), result.to_table().num_rows) == (4, 4)
        assert len(list((out / "predictions").glob(f"part-*.{kind}"))) == 2


# -- interruptions and updates -------------------------------------------------------------------------------


def contents(out: Path) -> dict[str, str]:
    return {name: digest for name, (_, digest) in snapshot(out / "predictions").items()}


def test_an_interrupted_prediction_is_finished_by_the_same_call(work: Path, tmp_path: Path) -> None:
    fp.predict(work / "model", work / "features", tmp_path / "undisturbed", engine=Watched())
    with pytest.raises(StoppedError):
        fp.predict(work / "model", work / "features", tmp_path / "out", engine=Watched(stop_after=2))
    assert not (tmp_path / "out" / PREDICTIONS_SUMMARY).exists()
    engine = Watched()
    fp.predict(work / "model", work / "features", tmp_path / "out", engine=engine)
    assert engine.shards == [2, 3, 4, 5]
    assert contents(tmp_path / "out") == contents(tmp_path / "undisturbed")
    engine = Watched()
    fp.predict(work / "model", work / "features", tmp_path / "out", engine=engine)
    assert engine.shards == []


def test_a_killed_command_is_finished_by_the_same_command(work: Path, tmp_path: Path) -> None:
    words = ("predict", work / "model", work / "in", "--images-per-part", "4", "--workers", "1", "--out")
    with started(*words, tmp_path / "undisturbed") as process:
        assert process.wait(120) == 0, process.communicate()
    with started(*words, tmp_path / "out") as process:
        wait_until(lambda: list((tmp_path / "out").glob("predictions/part-*.json")), "the first predicted part")
        interrupt(process, signal.SIGKILL)
    assert not (tmp_path / "out" / PREDICTIONS_SUMMARY).exists()
    with started(*words, tmp_path / "out") as process:
        assert process.wait(120) == 0, process.communicate()
    killed, undisturbed = contents(tmp_path / "out"), contents(tmp_path / "undisturbed")
    assert killed.keys() == undisturbed.keys()
    different = {Path(name).suffix for name in killed if killed[name] != undisturbed[name]}
    assert different <= {".json"}  # receipts name the features, which were embedded twice
    assert read_json(tmp_path / "out" / PREDICTIONS_SUMMARY)["rows"] == 91


def test_after_an_update_only_changed_parts_are_predicted(work: Path, tmp_path: Path) -> None:
    images = shutil.copytree(work / "in", tmp_path / "in")
    set_ = embed(str(images), tmp_path / "features", images_per_part=16, precision="float32")
    options: dict[str, Any] = {"images_per_part": 16}
    fp.predict(work / "model", set_, tmp_path / "of-set")
    fp.predict(work / "model", str(images), tmp_path / "of-images", **options)
    next(images.glob("Banana/*.jpg")).unlink()  # in the second part
    draw(images / "zz", 3)
    for out in ("features", "of-images"):
        fp.update(tmp_path / out)
    for out, sources in (("of-set", tmp_path / "features"), ("of-images", str(images))):
        engine = Watched()
        own: dict[str, Any] = options if out == "of-images" else {}
        result = fp.predict(work / "model", sources, tmp_path / out, engine=engine, **own)
        assert len(engine.shards) == 2  # the part that lost an image, and the new one
        assert len(result) == 93
        assert set(result.to_table()["uri"].to_pylist()) == set(result.features.uris.tolist())


def test_predictions_of_parts_that_are_gone_are_removed(tmp_path: Path) -> None:
    set_ = made(tmp_path / "features", numbers(12), label=[f"{i % 2}" for i in range(12)])
    model = train(set_, tmp_path / "model")
    fp.predict(model, set_, tmp_path / "out")
    (tmp_path / "features" / "features" / "part-00000002.parquet").unlink()
    result = fp.predict(model, set_, tmp_path / "out")
    assert (len(result), result.summary["parts"]) == (8, 2)
    assert not list((tmp_path / "out").glob("predictions/part-00000002*"))


def test_a_lost_part_is_predicted_again(work: Path, tmp_path: Path) -> None:
    first = fp.predict(work / "model", work / "features", tmp_path / "out").to_table()
    (tmp_path / "out" / "predictions" / "part-00000003.parquet").unlink()
    assert fp.predict(work / "model", work / "features", tmp_path / "out").to_table().equals(first)


def test_a_set_that_changes_meanwhile_is_an_error(tmp_path: Path) -> None:
    set_ = made(tmp_path / "features", numbers(12), label=[f"{i % 2}" for i in range(12)])
    model = train(set_, tmp_path / "model")
    parts = tmp_path / "features" / "features"

    class Changing(Watched):
        def run(self, task: Any, plan: Plan, shards: Any, on_message: Any = None) -> Generator[Any]:
            yield from super().run(task, plan, shards)
            made(tmp_path / "other", numbers(3))
            shutil.copy(tmp_path / "other" / "features" / "part-00000000.parquet", parts / "part-00000001.parquet")

    with pytest.raises(StoppedError, match="changed"):
        fp.predict(model, set_, tmp_path / "out", engine=Changing())
    assert not (tmp_path / "out" / PREDICTIONS_SUMMARY).exists()


def test_a_small_set_is_predicted_in_this_process(work: Path, tmp_path: Path) -> None:
    before = psutil.Process().children()
    alone = fp.predict(work / "model", work / "features", tmp_path / "alone").to_table()
    assert psutil.Process().children() == before
    beside = fp.predict(work / "model", work / "features", tmp_path / "beside", workers=2).to_table()
    assert alone.select(["uri", "label"]).equals(beside.select(["uri", "label"]))
    np.testing.assert_allclose(alone["probability"].to_numpy(), beside["probability"].to_numpy(), atol=1e-6)


def test_from_a_bucket_to_a_bucket_with_a_model_in_it(work: Path, tmp_path: Path, fast_s3: FastS3) -> None:
    bucket = fast_s3.bucket()
    for folder in ("in/Kiwi", "model"):
        files = {f"{folder}/{path.name}": path.read_bytes() for path in (work / folder).iterdir()}
        fast_s3.put(bucket, files)
    model, out = f"s3://{bucket}/model", f"s3://{bucket}/out"
    there = fp.predict(model, f"s3://{bucket}/in", out, top_k=2)
    here = fp.predict(work / "model", str(work / "in" / "Kiwi"), tmp_path / "here", top_k=2)
    names = [[uri.rpartition("/")[2] for uri in result.to_table()["uri"].to_pylist()] for result in (there, here)]
    assert names[0] == names[1]
    assert there.to_table().drop(["uri"]).equals(here.to_table().drop(["uri"]))
    of_set = fp.predict(model, out, f"s3://{bucket}/of-set", top_k=2, workers=2)
    assert of_set.to_table().equals(there.to_table())
    assert fp.predict(model, out, f"s3://{bucket}/of-set", top_k=2).summary == of_set.summary
    refused(DestinationError, "inside the feature set", model, out, f"{out}/inside", top_k=2)


# -- refusals ------------------------------------------------------------------------------------------


def refused(error: type[Exception], pattern: str, *arguments: Any, **options: Any) -> None:
    with pytest.raises(error, match=pattern) as caught:
        fp.predict(*arguments, **options)
    assert len(str(caught.value).splitlines()) == 1


def test_bad_requests_write_nothing(work: Path, tmp_path: Path) -> None:
    out, model = tmp_path / "out", work / "model"
    refused(AnalysisError, "is not a trained model", work / "in", work / "features", out)
    refused(SettingError, "did you mean 'top_k'", model, work / "features", out, topk=3)
    refused(SettingError, "14.*Got 15", model, work / "features", out, top_k=15)
    refused(SettingError, "is a feature set.*Leave out limit", model, work / "features", out, limit=3)
    refused(SourceError, "nowhere", model, str(tmp_path / "nowhere"), out)
    other = made(tmp_path / "f", numbers(4))
    refused(PlanMismatchError, "features with model", work / "reduced-model", other, out)
    begun = made(tmp_path / "begun", numbers(4), complete=False)
    refused(IncompleteError, "not complete", model, begun, out)
    refused(IncompleteError, "not complete", model, tmp_path / "begun", out)
    refused(DestinationError, "is a feature set", model, work / "features", work / "features")
    for inside in ("features/inside", "inside"):
        place = work / "features" / inside
        refused(DestinationError, "inside the feature set.*beside it", model, work / "features", place)
        assert not place.exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    for sources in (work / "features", str(work / "in")):
        refused(DestinationError, "holds something else", model, sources, tmp_path / "mine")
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == ["thesis.txt"]
    assert not out.exists()


def test_an_edited_model_is_refused(work: Path, tmp_path: Path) -> None:
    shutil.copytree(work / "model", tmp_path / "model")
    path = tmp_path / "model" / "classifier.npz"
    path.write_bytes(path.read_bytes() + b" ")
    refused(AnalysisError, "hash differs", tmp_path / "model", work / "features", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_of_another_backbone_is_refused(work: Path, tmp_path: Path) -> None:
    model = open_model(work / "model")
    other = replace(model, backbone=replace(model.backbone, weights_sha256="1" * 64), location="", sha256="")
    refused(PlanMismatchError, "weights_sha256: '1111", other, str(work / "in"), tmp_path / "out")
    refused(PlanMismatchError, "weights_sha256: '1111", other, work / "features", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_empty_set_and_nan_features_are_refused(tmp_path: Path) -> None:
    set_ = made(tmp_path / "features", numbers(8), label=[f"{i % 2}" for i in range(8)])
    model = train(set_, tmp_path / "model")
    empty = made(tmp_path / "empty", numbers(0))
    refused(AnalysisError, "is empty", model, empty, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    X = numbers(8)
    X[5, 2] = np.nan
    refused(AnalysisError, r"'000005.jpg'.*NaN", model, made(tmp_path / "nan", X), tmp_path / "nans")
    assert not (tmp_path / "nans" / PREDICTIONS_SUMMARY).exists()


def test_a_destination_with_other_predictions_is_left_alone(work: Path, tmp_path: Path) -> None:
    fp.predict(work / "model", work / "features", tmp_path / "out", top_k=3)
    before = snapshot(tmp_path / "out")
    where = (work / "features", tmp_path / "out")
    refused(PlanMismatchError, "top_k: 3, not 1", work / "model", *where)
    refused(PlanMismatchError, "model: '", work / "reduced-model", *where, top_k=3)
    refused(PlanMismatchError, "features: '", work / "reduced-model", work / "reduced", tmp_path / "out", top_k=3)
    refused(DestinationError, "holds something else", work / "model", str(work / "in"), tmp_path / "out", top_k=3)
    assert snapshot(tmp_path / "out") == before
    of_images = tmp_path / "of-images"
    fp.predict(work / "model", str(work / "in" / "Kiwi"), of_images)
    refused(PlanMismatchError, "top_k: 1, not 2", work / "model", str(work / "in" / "Kiwi"), of_images, top_k=2)
    refused(PlanMismatchError, "sources: ", work / "model", str(work / "in"), of_images)


def test_an_exchanged_model_at_the_destination_is_an_error(work: Path, tmp_path: Path) -> None:
    with pytest.raises(StoppedError):
        fp.predict(work / "model", work / "features", tmp_path / "out", engine=Watched(stop_after=1))
    own = tmp_path / "out" / "predictions" / "model"
    shutil.rmtree(own)
    shutil.copytree(work / "reduced-model", own)
    predictions.copied_model.cache_clear()
    refused(StoppedError, "not the model of these predictions", work / "model", work / "features", tmp_path / "out")
    assert json.loads((own / "model.json").read_bytes())["files"].keys() == {"classifier.npz", "projection.npz"}


def test_without_predictions_all_parts_are_unfinished(tmp_path: Path) -> None:
    set_ = made(tmp_path / "features", numbers(8), label=[f"{i % 2}" for i in range(8)])
    with pytest.raises(StoppedError):
        fp.predict(train(set_, tmp_path / "model"), set_, tmp_path / "out", engine=Watched(stop_after=0))
    assert predictions.unfinished_parts(FolderStorage(str(tmp_path / "out")), {0: "a", 1: "b"}) == [0, 1]


# -- how they are read ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"top_k": 2}, {"file_format": "csv", "threshold": 0.5}])
def test_libraries_read_predictions_through_arrow(work: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    result = fp.predict(work / "model", work / "features", tmp_path / "out", **options)
    table = result.to_table()
    assert table.schema.equals(result.schema)
    assert pa.table(result).equals(table)
    assert result.to_pandas().equals(table.to_pandas())
    cast = pa.schema([pa.field(field.name, field.type) for field in table.schema])  # nullable
    assert pa.RecordBatchReader.from_stream(result, schema=cast).read_all().num_rows == len(result)


def test_polars_reads_predictions(work: Path, tmp_path: Path) -> None:
    polars = pytest.importorskip("polars")
    result = fp.predict(work / "model", work / "features", tmp_path / "out")
    assert polars.DataFrame(result).to_dicts() == result.to_table().to_pylist()


def test_duckdb_queries_predictions(work: Path, tmp_path: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    predictions = fp.predict(work / "model", work / "features", tmp_path / "out")
    rows = duckdb.sql("SELECT label, count(*) FROM predictions GROUP BY label").fetchall()
    assert dict(rows) == predictions.counts


def test_datasets_reads_predictions(work: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    result = fp.predict(work / "model", work / "features", tmp_path / "out")
    dataset = datasets.Dataset(pa.table(result))
    assert dataset["uri"][:] == result.to_table()["uri"].to_pylist()


def test_predictions_in_a_notebook(work: Path, tmp_path: Path) -> None:
    result = fp.predict(work / "model", work / "features", tmp_path / "out")
    assert repr(result) == f"<Predictions '{tmp_path / 'out'}': 91 rows, {len(result.counts)} labels>"
    html = result._repr_html_()
    for fact in ("91", str(tmp_path / "out"), result.to_table()["label"][0].as_py()):
        assert fact in html
    assert html.count("<tr>") == 6 + 1 + 5


def test_a_model_in_a_notebook(work: Path) -> None:
    model = open_model(work / "model")
    assert repr(model).startswith(f"<TrainedModel '{work / 'model'}': logistic, 14 labels")
    assert model.fingerprint in model._repr_html_()
