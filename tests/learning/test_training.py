from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import featurepress as fp
from featurepress.analysis import near_duplicates
from featurepress.errors import AnalysisError, DestinationError, RequestError, SettingError
from featurepress.features.feature_set import FeatureSet
from tests.analysis.clouds import cloud, cloud_set
from tests.features.feature_sets import made, numbers
from tests.servers.s3 import S3

EASY: dict[str, Any] = {"regularization": 0.1}


def turntable(out: Path, n_objects: int = 40, n_views: int = 6) -> FeatureSet:
    """Write a set of many views of few objects: its naive accuracy is far above that on other objects."""
    draw = np.random.default_rng(0)
    centres = draw.normal(size=(2, 12))
    kinds = np.arange(n_objects) % 2
    objects = 0.3 * centres[kinds] + draw.normal(size=(n_objects, 12))
    X = np.repeat(objects, n_views, axis=0) + 0.02 * draw.normal(size=(n_objects * n_views, 12))
    labels = [f"kind {kind}" for kind in np.repeat(kinds, n_views)]
    return made(out, X.astype(np.float32), rows_a_part=50, distinct=True, label=list(labels))


def sides(n: int) -> list[str]:
    return ["Test" if i % 4 == 3 else "Training" for i in range(n)]


def test_a_model_is_trained_measured_and_written(tmp_path: Path) -> None:
    features = cloud_set(tmp_path / "features")
    steps: list[str] = []
    model = fp.train(
        features.location, tmp_path / "model", progress=lambda progress: steps.append(progress.doing), **EASY
    )
    assert steps[0] == "reading"
    X, y = cloud(90, random_state=5)
    assert (model.predict(X) == y).mean() > 0.95
    assert model.classifier.n_samples_ == 240
    for side in ("naive", "leak_aware"):
        assert model.metrics[side]["scores"]["accuracy"] > 0.95
        assert model.metrics[side]["scores"]["n_samples"] >= 30
    assert model.trained_on["split"] == "drawn"
    assert set(model.versions) == {"featurepress", "scikit-learn", "numpy"}
    found = fp.open_model(tmp_path / "model")
    assert (found.metrics, found.trained_on) == (model.metrics, model.trained_on)
    assert found.predict_proba(X).tobytes() == model.predict_proba(X).tobytes()
    assert "{" not in fp.train(features, tmp_path / "model{time}", **EASY).location


def test_near_duplicates_raise_the_naive_accuracy(tmp_path: Path) -> None:
    model = fp.train(
        turntable(tmp_path / "features"), None, near_duplicate_threshold=0.9, kind="knn", n_neighbors=1
    )
    naive, aware = (model.metrics[side]["scores"] for side in ("naive", "leak_aware"))
    assert naive["accuracy"] > 0.97
    assert aware["accuracy"] < naive["accuracy"] - 0.1
    assert model.metrics["near_duplicate_threshold"] == 0.9


def test_with_a_split_only_the_training_side_is_fitted(tmp_path: Path) -> None:
    features = cloud_set(tmp_path / "features", split=sides(240))
    model = fp.train(features, None, **EASY)
    assert model.trained_on["split"] == "by the column 'split'"
    assert model.classifier.n_samples_ == 180
    X, y = cloud(240)
    train = np.array(sides(240)) == "Training"
    alone = fp.train(made(tmp_path / "other", X[train], label=list(y[train]), distinct=True), None, **EASY)
    np.testing.assert_allclose(model.predict_proba(X), alone.predict_proba(X), atol=1e-4)
    accuracy = (model.predict(X[~train]) == y[~train]).mean()
    assert model.metrics["naive"]["scores"]["accuracy"] == pytest.approx(accuracy)


def test_test_images_with_a_near_duplicate_in_training_are_dropped_and_counted(tmp_path: Path) -> None:
    X, y = cloud(240)
    X[3:43:4] = X[2:42:4]  # ten test images are copies of training images
    features = made(tmp_path / "features", X, label=y.tolist(), split=sides(240), distinct=True)
    model = fp.train(features, None, near_duplicate_threshold=0.9999, **EASY)
    assert model.metrics["naive"]["n_near_duplicates"] == 0
    assert model.metrics["leak_aware"]["n_near_duplicates"] == 10
    assert model.metrics["leak_aware"]["n_test"] == 50


@pytest.mark.parametrize("kind", ["logistic", "centroid"])
def test_more_than_memory_is_streamed(kind: Any, tmp_path: Path) -> None:
    features = cloud_set(tmp_path / "features", 3_000, rows_a_part=200)
    model = fp.train(
        features, None, kind=kind, in_memory_bytes=4 * 15 * 600, **(EASY if kind == "logistic" else {})
    )
    X, y = cloud(300, random_state=5)
    assert (model.predict(X) == y).mean() > 0.95
    assert model.classifier.n_samples_ == 3_000
    (note,) = model.metrics["notes"]
    assert "600 of 3,000" in note
    assert 100 < model.metrics["naive"]["scores"]["n_samples"] < 200


def test_a_sample_is_measured_where_the_search_for_near_duplicates_is_too_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(near_duplicates, "_MOST_WORK", 3 * 100**2 / 2 * 76)  # of a hundred rows a label
    model = fp.train(cloud_set(tmp_path / "features", 900), None, **EASY)
    assert model.classifier.n_samples_ == 900
    (note,) = model.metrics["notes"]
    assert "300 of 900" in note
    assert model.metrics["naive"]["n_test"] == 75


def test_a_streamed_fit_uses_the_regularization_of_the_measurement(tmp_path: Path) -> None:
    features = cloud_set(tmp_path / "features", 900, spread=3.0)
    whole = fp.train(features, None, near_duplicate_threshold=0.99)
    streamed = fp.train(features, None, near_duplicate_threshold=0.99, in_memory_bytes=4 * 15 * 899)
    assert streamed.classifier.regularization_ == whole.classifier.regularization_
    X = features.to_numpy()
    assert not np.array_equal(streamed.predict_proba(X), whole.predict_proba(X))  # not fitted in memory


def test_knn_beyond_memory_is_refused(tmp_path: Path) -> None:
    features = cloud_set(tmp_path / "features")
    with pytest.raises(AnalysisError, match=r"knn.* in memory"):
        fp.train(features, tmp_path / "model", kind="knn", in_memory_bytes=100)
    assert not (tmp_path / "model").exists()


# -- bad input: one line, nothing is written --------------------------------------------------------------------


def one_class(out: Path) -> FeatureSet:
    return made(out, numbers(40), label=["apple"] * 40)


def a_class_of_one(out: Path) -> FeatureSet:
    return cloud_set(out, 41, label=["plum", *(["apple", "pear"] * 20)])


def no_labels(out: Path) -> FeatureSet:
    return cloud_set(out, 40, label=[None, *(["apple", "pear", "pear"] * 13)])


def not_numbers(out: Path) -> FeatureSet:
    X, y = cloud(40)
    X[11, 3] = np.nan
    return made(out, X, label=y.tolist(), distinct=True)


def nothing(out: Path) -> FeatureSet:
    return made(out, numbers(0), label=[])


def not_numbers_in_the_test(out: Path) -> FeatureSet:
    X, y = cloud(240)
    X[[3, 7], 3] = np.inf, np.nan
    return made(out, X, label=y.tolist(), split=sides(240), distinct=True)


@pytest.mark.parametrize(
    ("make", "fact"),
    [
        (one_class, "'apple'"),
        (a_class_of_one, "'plum'"),
        (no_labels, "1 of the 40"),
        (not_numbers, "1 of 40 rows"),
        (not_numbers_in_the_test, "2 of 240 rows"),
        (nothing, "is empty"),
    ],
)
def test_bad_input_is_one_line(make: Any, fact: str, tmp_path: Path) -> None:
    features = make(tmp_path / "features")
    with pytest.raises(AnalysisError, match=re.escape(fact)) as error:
        fp.train(features, tmp_path / "model")
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 2
    assert not (tmp_path / "model").exists()


def one_file(out: Path) -> FeatureSet:
    return made(out, numbers(40), label=["a", "b"] * 20)


def two_of_each(out: Path) -> FeatureSet:
    return cloud_set(out, 6)


@pytest.mark.parametrize("make", [one_file, two_of_each])
@pytest.mark.parametrize("kind", ["logistic", "knn", "centroid"])
def test_a_set_too_small_to_measure_is_fitted(make: Any, kind: Any, tmp_path: Path) -> None:
    model = fp.train(make(tmp_path / "features"), tmp_path / "model", kind=kind)
    assert model.metrics["leak_aware"]["scores"] is None
    assert "30 are needed" in model.metrics["leak_aware"]["reason"]
    assert model.classifier.regularization_ == (1.0 if kind == "logistic" else None)
    assert fp.evaluate(tmp_path / "model", tmp_path / "features").best.scores is None


def test_memory_for_one_row_is_enough(tmp_path: Path) -> None:
    model = fp.train(cloud_set(tmp_path / "features"), None, in_memory_bytes=1)
    X, y = cloud(90, random_state=5)
    assert (model.predict(X) == y).mean() > 0.95


def test_wrong_settings(tmp_path: Path) -> None:
    features = cloud_set(tmp_path / "features", 40)
    with pytest.raises(SettingError, match=r"'neighbors'.*'n_neighbors'"):
        fp.train(features, None, neighbors=3)  # type: ignore[call-arg]
    with pytest.raises(SettingError, match=r"'n_neighbors'.*'knn'.*'logistic'"):
        fp.train(features, None, n_neighbors=3)
    with pytest.raises(SettingError, match=r"'regularization'.*'logistic'.*'knn'"):
        fp.train(features, None, kind="knn", regularization=3.0)
    with pytest.raises(SettingError, match=r"'split_field'.*'split_file'"):
        fp.train(features, None, split_field="a", split_file="b")


def test_a_destination_that_is_not_empty_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "notes.txt").write_text("mine")
    with pytest.raises(DestinationError, match=r"'notes.txt'"):
        fp.train(one_class(tmp_path / "features"), tmp_path / "model")
    with pytest.raises(RequestError, match="is not a feature set"):
        fp.train(tmp_path / "nowhere", tmp_path / "model")
    with pytest.raises(DestinationError, match="feature set"):
        fp.train(tmp_path / "features", tmp_path / "features" / "features" / "model")


def test_a_model_in_a_bucket(s3: S3, tmp_path: Path) -> None:
    features, bucket = cloud_set(tmp_path / "features"), s3.bucket()
    model = fp.train(features, f"s3://{bucket}/models/fruit", **EASY)
    X, _ = cloud(30)
    found = fp.open_model(f"s3://{bucket}/models/fruit")
    assert found.predict_proba(X).tobytes() == model.predict_proba(X).tobytes()
    assert fp.evaluate(f"s3://{bucket}/models/fruit", features).naive == fp.evaluate(model, features).naive
    with pytest.raises(DestinationError, match="a trained model"):
        fp.train(features, f"s3://{bucket}/models/fruit", **EASY)
    with pytest.raises(DestinationError, match=r"Choose another --out\.$"):
        fp.train(features, "s3://there-is-no-such-bucket/fruit", **EASY)
