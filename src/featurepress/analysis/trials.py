"""Measure a classifier on naive and leak-aware splits, with baselines, mistakes and a learning curve."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from featurepress.analysis.classifier import Classifier, draw_rows
from featurepress.analysis.evaluation import Baseline, LearningPoint, Measured, Mistake
from featurepress.analysis.moments import require_finite
from featurepress.analysis.near_duplicates import near_duplicate_groups, near_duplicate_threshold
from featurepress.analysis.scores import score, wilson_interval
from featurepress.analysis.splits import Split, drawn_split, given_split

if TYPE_CHECKING:
    import numpy.typing as npt
    import pyarrow as pa

    from featurepress.specs import Features

    Rows = npt.NDArray[np.int64]
    Labels = npt.NDArray[np.str_]

Histograms = Callable[[Sequence[str]], Mapping[str, Any]]  # uris -> a histogram of each readable image

MOST_MISTAKES = 24
_CURVE_SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)  # of the training images
_BASELINE_TRAIN, _BASELINE_TEST = 2_000, 1_000  # images whose histograms are read at most


@dataclass(frozen=True)
class Trial:
    """Labelled rows in memory, and a classifier to measure on them.

    `uris` is an Arrow column; `hashes` are equal only for files with the same bytes. `classifier` has the settings,
    and is already fitted to the training rows if `is_fitted`. `is_test` marks the test rows, which are drawn by
    default. `near_duplicate_threshold` is by default that of `near_duplicates.near_duplicate_threshold`.
    """

    X: Features
    y: Labels
    uris: pa.ChunkedArray
    hashes: Rows
    classifier: Classifier
    is_test: npt.NDArray[np.bool_] | None = None
    is_fitted: bool = False
    near_duplicate_threshold: float | None = None

    def uris_of(self, rows: Rows) -> list[str]:
        """Return the uris of rows."""
        uris: list[str] = self.uris.take(rows).to_pylist()
        return uris


@dataclass(frozen=True)
class Outcome:
    """Results of a trial; `splits`, `fitted` and the measurements are naive and leak-aware.

    `threshold` is the cosine from which two images of a label count as near-duplicates, `groups` the group of each
    row. `fitted` are classifiers fitted to the training rows of each split, or None if that is impossible.
    """

    trial: Trial
    threshold: float
    groups: Rows
    splits: tuple[Split, Split]
    fitted: tuple[Classifier | None, Classifier | None]
    naive: Measured
    leak_aware: Measured

    @property
    def near_duplicate_rule(self) -> str:
        """How the threshold was chosen, in words."""
        if self.trial.near_duplicate_threshold is not None:
            return "set by near_duplicate_threshold"
        return (
            "chosen so that 99 % of the images have no image of another label this close (limited to 0.85 to 0.99)"
        )

    @property
    def best(self) -> tuple[Split, Classifier | None]:
        """Split and classifier of the leak-aware measurement if there is one, else of the naive one."""
        number = 0 if self.leak_aware.scores is None else 1
        return self.splits[number], self.fitted[number]


def measure(trial: Trial) -> Outcome:
    """Return the scores of a classifier on a naive and on a leak-aware split.

    The regularisation is chosen once, on the leak-aware training rows, with near-duplicates in the same fold. So
    the two measurements differ only in their images. Time: two fits, the search for near-duplicates among the rows
    of each label, and the cross-validation.
    """
    require_finite(trial.X.mean(axis=0, dtype=np.float64), trial.X)  # test rows too
    y, threshold, seed = trial.y, trial.near_duplicate_threshold, trial.classifier.random_state
    if threshold is None:
        threshold = near_duplicate_threshold(trial.X, y, random_state=seed)
    groups = near_duplicate_groups(trial.X, y, trial.hashes, threshold=threshold)
    if trial.is_test is None:
        splits = drawn_split(y, random_state=seed), drawn_split(y, groups, random_state=seed)
    else:
        splits = given_split(y, trial.is_test), given_split(y, trial.is_test, groups)
    aware = _fit(trial, trial.classifier, splits[1], groups)
    if np.array_equal(splits[0].train, splits[1].train):
        naive = aware
    else:
        chosen = aware.regularization_ if aware is not None else None
        naive = _fit(trial, replace(trial.classifier, regularization=chosen), splits[0], groups)
    measured = _measured(trial, splits[0], naive), _measured(trial, splits[1], aware)
    return Outcome(trial, threshold, groups, splits, (naive, aware), *measured)


def _fit(trial: Trial, classifier: Classifier, split: Split, groups: Rows) -> Classifier | None:
    """Return a classifier fitted to the training rows; None if they have fewer than two labels."""
    if trial.is_fitted:
        return trial.classifier
    if len(np.unique(trial.y[split.train])) < 2:
        return None
    return replace(classifier).fit(trial.X[split.train], trial.y[split.train], groups[split.train])


def _measured(trial: Trial, split: Split, fitted: Classifier | None) -> Measured:
    reason = split.reason or ("" if fitted is not None else "fewer than two labels are left in training")
    n_train, n_test = len(split.train), len(split.test)
    if reason or fitted is None:
        return Measured(n_train, n_test, split.n_near_duplicates, split.not_evaluable, reason)
    found = score(trial.y[split.test], fitted.predict_proba(trial.X[split.test]), fitted.classes_)
    return Measured(n_train, n_test, split.n_near_duplicates, split.not_evaluable, "", found)


# -- mistakes, learning curve, baselines ------------------------------------------------------------------------


def find_mistakes(outcome: Outcome, limit: int = MOST_MISTAKES) -> tuple[Mistake, ...]:
    """Return the mistakes on the test images, highest confidence first."""
    trial, (split, fitted) = outcome.trial, outcome.best
    if fitted is None or not len(split.test):
        return ()
    shares = fitted.predict_proba(trial.X[split.test])
    predicted, confidence = fitted.classes_[shares.argmax(axis=1)], shares.max(axis=1)
    wrong = np.flatnonzero(predicted != trial.y[split.test])
    wrong = wrong[np.argsort(-confidence[wrong], kind="stable")][:limit]
    return tuple(
        Mistake(uri, str(trial.y[row]), str(predicted[i]), float(confidence[i]))
        for i, row, uri in zip(wrong, split.test[wrong], trial.uris_of(split.test[wrong]), strict=True)
    )


def learning_curve(outcome: Outcome) -> tuple[LearningPoint, ...]:
    """Return the accuracy on the same test rows after fitting to growing shares of the training rows."""
    trial, (split, fitted) = outcome.trial, outcome.best
    if fitted is None or not len(split.test) or not len(split.train):
        return ()
    y_train = trial.y[split.train]
    points: dict[int, LearningPoint] = {}
    for share in _CURVE_SHARES:
        rows = split.train[draw_rows(y_train, round(share * len(y_train)), fitted.random_state)]
        if len(rows) in points or len(np.unique(trial.y[rows])) < 2:
            continue
        classifier, n_train = fitted, fitted.n_samples_  # more than len(rows) if these are a sample
        if len(rows) < len(split.train):
            classifier = replace(fitted, regularization=fitted.regularization_).fit(trial.X[rows], trial.y[rows])
            n_train = len(rows)
        is_correct = classifier.predict(trial.X[split.test]) == trial.y[split.test]
        points[len(rows)] = LearningPoint(n_train, *_accuracy(is_correct))
    return tuple(points.values())


def baselines(outcome: Outcome, histograms: Histograms | None = None) -> tuple[Baseline, ...]:
    """Return the accuracy of two simple methods: the most frequent label, and colour histograms.

    `histograms` returns the colour histogram of each readable image by uri. Without it, the second is not measured.
    """
    trial, (split, _) = outcome.trial, outcome.best
    if not len(split.test) or not len(split.train):
        return ()
    y, train, test = trial.y, split.train, split.test
    labels, counts = np.unique(y[train], return_counts=True)
    label = labels[counts.argmax()]
    majority = Baseline(f"always the most frequent label, '{label}'", *_accuracy(y[test] == label))
    return majority, _histogram_baseline(outcome, train, test, histograms)


def _histogram_baseline(outcome: Outcome, train: Rows, test: Rows, histograms: Histograms | None) -> Baseline:
    trial, name = outcome.trial, "colour histogram"
    seed = trial.classifier.random_state
    if histograms is None:
        return Baseline(name, reason="the images were not read")
    train = train[draw_rows(trial.y[train], _BASELINE_TRAIN, seed)]
    test = test[draw_rows(trial.y[test], _BASELINE_TEST, seed)]
    uris = [trial.uris_of(rows) for rows in (train, test)]
    found = histograms([*uris[0], *uris[1]])
    is_readable = [np.array([uri in found for uri in side], bool) for side in uris]
    train, test = train[is_readable[0]], test[is_readable[1]]
    if len(test) < len(found) / 10 or len(np.unique(trial.y[train])) < 2 or not len(test):
        return Baseline(name, reason="the images cannot be read")
    H = [np.stack([found[uri] for uri in side if uri in found]).astype(np.float32) for side in uris]
    classifier = Classifier(random_state=seed, balanced=trial.classifier.balanced)
    classifier.fit(H[0], trial.y[train], outcome.groups[train])
    name = f"{name}, of {len(train):,} training and {len(test):,} test images"
    return Baseline(name, *_accuracy(classifier.predict(H[1]) == trial.y[test]))


def _accuracy(is_correct: npt.NDArray[np.bool_]) -> tuple[float, tuple[float, float]]:
    """Return the share of correct predictions, and its interval."""
    return float(is_correct.mean()), wilson_interval(int(is_correct.sum()), len(is_correct))
