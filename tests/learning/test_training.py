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


def turntable(out: Path, n_things: int = 40, n_views: int = 6) -> FeatureSet:
    """Write a set of many views of few things: its naive accuracy is far above what other things would give."""
    draw = np.random.default_rng(0)
    centres = draw.normal(size=(2, 12))
    kinds = np.arange(n_things) % 2
    things = 0.3 * centres[kinds] + draw.normal(size=(n_things, 12))
    X = np.repeat(things, n_views, axis=0) + 0.02 * draw.normal(size=(n_things * n_views, 12))
    labels = [f"kind {kind}" for kind in np.repeat(kinds, n_views)]
    return made(out, X.astype(np.float32), rows_a_part=50, distinct=True, label=list(labels))


def sides(n: int) -> list[str]:
    return ["Test" if i % 4 == 3 else "Training" for i in range(n)]


def test_a_model_is_trained_measured_and_written(tmp_path: Path) -> None:
    features = cloud_set(tmp_path / "features")
    heard: list[str] = []
    model = fp.train(
        features.location, tmp_path / "model", on_progress=lambda progress: heard.append(progress.doing), **EASY
    )
    assert heard[0] == "reading"
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


def test_twins_flatter_the_naive_figure(tmp_path: Path) -> None:
    model = fp.train(turntable(tmp_path / "features"), near_duplicate_threshold=0.9, kind="knn", n_neighbors=1)
    naive, aware = (model.metrics[side]["scores"] for side in ("naive", "leak_aware"))
    assert naive["accuracy"] > 0.97
    assert aware["accuracy"] < naive["accuracy"] - 0.1
    assert model.metrics["near_duplicate_threshold"] == 0.9


def test_with_a_given_split_only_one_side_is_learned(tmp_path: Path) -> None:
    features = cloud_set(tmp_path / "features", split=sides(240))
    model = fp.train(features, **EASY)
    assert model.trained_on["split"] == "by the column 'split'"
    assert model.classifier.n_samples_ == 180
    X, y = cloud(240)
    train = np.array(sides(240)) == "Training"
    alone = fp.train(made(tmp_path / "other", X[train], label=list(y[train]), distinct=True), **EASY)
    np.testing.assert_allclose(model.predict_proba(X), alone.predict_proba(X), atol=1e-4)
    accuracy = (model.predict(X[~train]) == y[~train]).mean()
    assert model.metrics["naive"]["scores"]["accuracy"] == pytest.approx(accuracy)


def test_test_pictures_with_a_twin_in_training_are_dropped_and_counted(tmp_path: Path) -> None:
    X, y = cloud(240)
    X[3:43:4] = X[2:42:4]  # ten test pictures are copies of training pictures
    features = made(tmp_path / "features", X, label=y.tolist(), split=sides(240), distinct=True)
    model = fp.train(features, near_duplicate_threshold=0.9999, **EASY)
    assert model.metrics["naive"]["n_near_duplicates"] == 0
    assert model.metrics["leak_aware"]["n_near_duplicates"] == 10
    assert model.metrics["leak_aware"]["n_test"] == 50


@pytest.mark.parametrize("kind", ["logistic", "centroid"])
def test_beyond_memory_it_is_streamed(kind: str, tmp_path: Path) -> None:
    features = cloud_set(tmp_path / "features", 3_000, rows_a_part=200)
    model = fp.train(features, kind=kind, in_memory_bytes=4 * 15 * 600, **(EASY if kind == "logistic" else {}))
    X, y = cloud(300, random_state=5)
    assert (model.predict(X) == y).mean() > 0.95
    assert model.classifier.n_samples_ == 3_000
    assert model.metrics["notes"] == [
        "measured on 600 drawn pictures of 3,000, by a classifier fitted in memory to them"
    ]
    assert 100 < model.metrics["naive"]["scores"]["n_samples"] < 200


def test_where_twins_are_too_many_to_look_for_fewer_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(near_duplicates, "_MOST_WORK", 3 * 100**2 / 2 * 76)  # of a hundred rows a label
    model = fp.train(cloud_set(tmp_path / "features", 900), **EASY)
    assert model.classifier.n_samples_ == 900
    assert model.metrics["notes"] == [
        "measured on 300 drawn pictures of 900, by a classifier fitted in memory to them"
    ]
    assert model.metrics["naive"]["n_test"] == 75


def test_streamed_regularisation_is_that_of_the_measurement(tmp_path: Path) -> None:
    features = cloud_set(tmp_path / "features", 900, spread=3.0)
    whole = fp.train(features, near_duplicate_threshold=0.99)
    streamed = fp.train(features, near_duplicate_threshold=0.99, in_memory_bytes=4 * 15 * 899)
    assert streamed.classifier.regularization_ == whole.classifier.regularization_
    assert "one_by_one" in streamed.classifier._arrays


def test_neighbours_beyond_memory_are_refused(tmp_path: Path) -> None:
    features = cloud_set(tmp_path / "features")
    with pytest.raises(AnalysisError, match="k nearest neighbours keep all features in memory"):
        fp.train(features, tmp_path / "model", kind="knn", in_memory_bytes=100)
    assert not (tmp_path / "model").exists()


# -- bad input: one line, nothing written --------------------------------------------------------------------


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
    ("make", "told"),
    [
        (one_class, "A classifier needs two classes at least. There is only 'apple'."),
        (a_class_of_one, "The class 'plum' has one picture only"),
        (no_labels, "1 of the 40 pictures of"),
        (not_numbers, "no number"),
        (not_numbers_in_the_test, "2 of 240 rows hold features that are no numbers"),
        (nothing, "is empty: there is nothing to learn"),
    ],
)
def test_bad_input_is_one_line(make: Any, told: str, tmp_path: Path) -> None:
    features = make(tmp_path / "features")
    with pytest.raises(AnalysisError, match=re.escape(told)) as error:
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
def test_too_little_to_measure_is_fitted_all_the_same(make: Any, kind: str, tmp_path: Path) -> None:
    model = fp.train(make(tmp_path / "features"), tmp_path / "model", kind=kind)
    assert model.metrics["leak_aware"]["scores"] is None
    assert "30 are needed" in model.metrics["leak_aware"]["reason"]
    assert model.classifier.regularization_ == (1.0 if kind == "logistic" else None)
    assert fp.evaluate(tmp_path / "model", tmp_path / "features").best.scores is None


def test_memory_for_one_row_is_enough(tmp_path: Path) -> None:
    model = fp.train(cloud_set(tmp_path / "features"), in_memory_bytes=1)
    X, y = cloud(90, random_state=5)
    assert (model.predict(X) == y).mean() > 0.95


def test_wrong_settings(tmp_path: Path) -> None:
    features = cloud_set(tmp_path / "features", 40)
    with pytest.raises(SettingError, match=r"no setting 'neighbors' here; did you mean 'n_neighbors'\?"):
        fp.train(features, neighbors=3)
    with pytest.raises(SettingError, match=r"'n_neighbors' setting is of kind 'knn' .* Got 'logistic'"):
        fp.train(features, n_neighbors=3)
    with pytest.raises(SettingError, match=r"'regularization' setting is of kind 'logistic'"):
        fp.train(features, kind="knn", regularization=3.0)
    with pytest.raises(SettingError, match=r"'split_column' .* or 'split_file' .*, not both"):
        fp.train(features, split_column="a", split_file="b")


def test_a_place_that_is_taken_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "notes.txt").write_text("mine")
    with pytest.raises(DestinationError, match=r"holds something else \('notes.txt'\) already"):
        fp.train(one_class(tmp_path / "features"), tmp_path / "model")
    with pytest.raises(RequestError, match="is not a feature set"):
        fp.train(tmp_path / "nowhere", tmp_path / "model")
    with pytest.raises(DestinationError, match=r"lies in the feature set '.*', which is only read"):
        fp.train(tmp_path / "features", tmp_path / "features" / "features" / "model")


def test_a_model_in_a_bucket(s3: S3, tmp_path: Path) -> None:
    features, bucket = cloud_set(tmp_path / "features"), s3.bucket()
    model = fp.train(features, f"s3://{bucket}/models/fruit", **EASY)
    X, _ = cloud(30)
    found = fp.open_model(f"s3://{bucket}/models/fruit")
    assert found.predict_proba(X).tobytes() == model.predict_proba(X).tobytes()
    assert fp.evaluate(f"s3://{bucket}/models/fruit", features).naive == fp.evaluate(model, features).naive
    with pytest.raises(DestinationError, match="holds a trained model already"):
        fp.train(features, f"s3://{bucket}/models/fruit", **EASY)
    with pytest.raises(DestinationError, match=r"Choose another --out\.$"):
        fp.train(features, "s3://there-is-no-such-bucket/fruit", **EASY)
