"""Classifiers agree with those of scikit-learn, also after storage, and choose their regularisation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler

from featurepress.analysis import Classifier
from featurepress.analysis.classifier import REGULARIZATIONS, draw_rows, require_classes
from featurepress.errors import AnalysisError, SettingError

KINDS = ["logistic", "knn", "centroid"]


SCALES = np.geomspace(0.01, 100, 12)


def fruits(n: int, classes: int, *, seed: int = 0, spread: float = 2.0) -> tuple[Any, Any]:
    """Draw features of some classes, of different scales, some of them constant."""
    draw = np.random.default_rng(seed)
    y = draw.integers(0, classes, n)
    y[: 2 * classes] = np.repeat(np.arange(classes), 2)
    X = np.random.default_rng(99).standard_normal((classes, 12))[y] + spread * draw.standard_normal((n, 12))
    X = X * SCALES + 5
    X[:, 3] = 7
    return X.astype(np.float32), np.array(["apple", "banana", "cherry", "date"])[y]


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("balanced", [False, True])
def test_logistic_agrees_with_scikit_learn(classes: int, balanced: bool) -> None:
    X, y = fruits(300, classes)
    weights = "balanced" if balanced else None
    theirs = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, class_weight=weights, max_iter=5_000))
    theirs.fit(X.astype(np.float64), y)
    ours = Classifier(regularization=0.1, balanced=balanced).fit(X, y)
    assert ours.classes_.tolist() == theirs.classes_.tolist()
    np.testing.assert_allclose(ours.predict_proba(X), theirs.predict_proba(X.astype(np.float64)), atol=2e-3)
    assert (ours.predict(X) == theirs.predict(X.astype(np.float64))).mean() > 0.99
    assert ours.regularization_ == 0.1


@pytest.mark.parametrize("classes", [2, 4])
def test_knn_agrees_with_scikit_learn(classes: int) -> None:
    X, y = fruits(300, classes)
    theirs = make_pipeline(StandardScaler(with_std=False), Normalizer(), KNeighborsClassifier(7)).fit(X, y)
    ours = Classifier("knn", n_neighbors=7).fit(X, y)
    later = fruits(100, classes, seed=1)[0]
    assert (np.abs(ours.predict_proba(later) - theirs.predict_proba(later)).max(axis=1) < 1e-6).mean() > 0.98


@pytest.mark.filterwarnings("ignore:self.within_class_std_dev_")  # of theirs, since a feature is constant
@pytest.mark.parametrize("classes", [2, 4])
def test_centroid_agrees_with_scikit_learn(classes: int) -> None:
    X, y = fruits(300, classes)
    theirs = make_pipeline(StandardScaler(), NearestCentroid()).fit(X.astype(np.float64), y)
    ours = Classifier("centroid", balanced=True).fit(X, y)
    later = fruits(200, classes, seed=1)[0]
    assert (ours.predict(later) == theirs.predict(later.astype(np.float64))).mean() > 0.99


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("classes", [2, 4])
def test_probabilities_are_probabilities_and_survive_storage(kind: str, classes: int) -> None:
    X, y = fruits(200, classes)
    one = Classifier(kind, random_state=3).fit(X, y)
    found = one.predict_proba(X)
    assert found.shape == (200, classes)
    assert (found >= 0).all()
    np.testing.assert_allclose(found.sum(axis=1), 1)
    again = Classifier.from_bytes(one.to_bytes())
    assert again.random_state == one.random_state
    assert np.array_equal(again.predict_proba(X), found)
    assert np.array_equal(again.predict(X), one.predict(X))
    assert (again.kind, again.n_samples_, again.regularization_) == (kind, 200, one.regularization_)


@pytest.mark.parametrize("kind", KINDS)
def test_later_images_are_classified(kind: str) -> None:
    X, y = fruits(600, 4, spread=0.7)
    later, truth = fruits(300, 4, seed=1, spread=0.7)
    if kind == "knn":  # which does not standardise features
        X, later = X / SCALES, later / SCALES
    assert (Classifier(kind).fit(X, y).predict(later) == truth).mean() > 0.85


@pytest.mark.parametrize("kind", KINDS)
def test_balanced_finds_more_of_a_rare_class(kind: str) -> None:
    X, y = fruits(1_200, 2, spread=3.0)
    kept = (y == "apple") | (np.cumsum(y == "banana") <= 40)
    later, truth = fruits(600, 2, seed=1, spread=3.0)
    rare = truth == "banana"
    found = [
        (
            Classifier(kind, balanced=one, n_neighbors=15).fit(X[kept], y[kept]).predict(later)[rare] == "banana"
        ).mean()
        for one in (False, True)
    ]
    assert found[1] > found[0] + 0.1


def test_the_regularisation_is_chosen_by_cross_validation() -> None:
    noisy = fruits(120, 4, spread=6.0)
    clear = fruits(600, 4, spread=0.3)
    weak, strong = (Classifier().fit(*data).regularization_ for data in (clear, noisy))
    assert weak in REGULARIZATIONS
    assert strong in REGULARIZATIONS
    assert weak is not None
    assert strong is not None
    assert strong < weak


def test_near_duplicates_stay_in_one_fold() -> None:
    """Each image nine times: without groups, the classifier seems to predict noise."""
    X, y = fruits(60, 4, spread=6.0)
    many, labels, groups = np.repeat(X, 9, axis=0), np.repeat(y, 9), np.repeat(np.arange(60), 9)
    naive = Classifier().fit(many, labels).regularization_
    aware = Classifier().fit(many, labels, groups).regularization_
    assert naive is not None
    assert aware is not None
    assert aware < naive


def test_a_sample_has_every_class() -> None:
    y = np.array(["a"] * 5_000 + ["b"] * 100 + ["c"] * 4 + ["d"] * 2)
    rows = draw_rows(y, 500, 0)
    labels, counts = np.unique(y[rows], return_counts=True)
    assert labels.tolist() == ["a", "b", "c", "d"]
    assert counts.tolist()[1:] == [10, 3, 2]
    assert np.array_equal(rows, np.unique(rows))
    assert np.array_equal(draw_rows(y, 10**6, 0), np.arange(len(y)))


@pytest.mark.parametrize("kind", KINDS)
def test_too_few_classes_or_images_are_refused(kind: str) -> None:
    X, y = fruits(20, 2)
    with pytest.raises(AnalysisError, match=r"two classes.*only 'apple'"):
        Classifier(kind).fit(X, np.array(["apple"] * 20))
    with pytest.raises(AnalysisError, match=r"two classes.*none"):
        Classifier(kind).fit(X[:0], y[:0])
    y[:] = "banana"
    y[:3] = ["apple", "cherry", "cherry"]
    assert Classifier(kind).fit(X, y).classes_.tolist() == ["apple", "banana", "cherry"]
    with pytest.raises(AnalysisError, match="'apple' has only one image"):
        require_classes(y)
    y[2] = "date"
    with pytest.raises(AnalysisError, match="'apple' and 2 more have only one image"):
        require_classes(y)


@pytest.mark.parametrize("kind", KINDS)
def test_wrong_features_are_refused(kind: str) -> None:
    X, y = fruits(40, 2)
    with pytest.raises(AnalysisError, match="has not been fitted"):
        Classifier(kind).predict(X)
    with pytest.raises(AnalysisError, match="has not been fitted"):
        Classifier(kind).to_bytes()
    one = Classifier(kind).fit(X, y)
    with pytest.raises(AnalysisError, match=r"12 features per row.*\(40, 11\)"):
        one.predict(X[:, :11])
    X[4, 4] = np.nan
    with pytest.raises(AnalysisError, match=r"1 of 40 rows.*NaN"):
        Classifier(kind).fit(X, y)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kind": "forest"}, r"'kind' setting must be 'logistic', 'knn' or 'centroid'. Got 'forest'"),
        ({"n_neighbors": 0}, r"'n_neighbors' setting must be an integer of at least 1"),
        ({"regularization": 0.0}, "must be a number of at least"),
    ],
)
def test_wrong_settings_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingError, match=words):
        Classifier(**options)
