"""Measure a classifier honestly: naive and leak-aware splits, beside baselines and a learning curve."""

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

Histograms = Callable[[Sequence[str]], Mapping[str, Any]]  # uris -> a small vector of each picture that can be read

MOST_MISTAKES = 24
_SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)  # of the training pictures, for the learning curve
_BASELINE_TRAIN, _BASELINE_TEST = 2_000, 1_000  # pictures whose colours are looked at, at most


@dataclass(frozen=True)
class Trial:
    """Labelled rows in memory, and the classifier that is to be measured on them.

    Parameters
    ----------
    X : array (n_samples, n_features) float32
        The features.
    y : array (n_samples,) of str
        The labels.
    uris : Arrow array (n_samples,) of str
        The names.
    hashes : array (n_samples,) int64
        Numbers that are the same for files of the same bytes only.
    classifier : Classifier
        Its settings; fitted, if `is_fitted`, to the rows that train.
    is_test : array (n_samples,) bool, optional
        Which rows test; drawn if nobody says it.
    is_fitted : bool
        Whether `classifier` is taken as it is.
    near_duplicate_threshold : float, optional
        Cosine from which two pictures of a label are twins; by default found by
        `featurepress.analysis.near_duplicates.near_duplicate_threshold`.
    """

    X: Features
    y: Labels
    uris: pa.ChunkedArray
    hashes: Rows
    classifier: Classifier
    is_test: npt.NDArray[np.bool_] | None = None
    is_fitted: bool = False
    near_duplicate_threshold: float | None = None

    def named(self, rows: Rows) -> list[str]:
        """Give the names of some rows."""
        names: list[str] = self.uris.take(rows).to_pylist()
        return names


@dataclass(frozen=True)
class Outcome:
    """What a trial gave.

    Attributes
    ----------
    trial : Trial
        The trial.
    threshold : float
        The cosine from which two pictures of a label were taken for twins.
    groups : array (n_samples,) int64
        Groups of twins.
    splits : tuple of Split
        The naive one and the leak-aware one.
    fitted : tuple of (Classifier or None)
        What was fitted to the training rows of each; None where that cannot be.
    naive, leak_aware : Measured
        What was measured with each.
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
        """From which cosine on pictures are twins, and why, in words."""
        if self.trial.near_duplicate_threshold is not None:
            return "set by near_duplicate_threshold"
        return (
            "chosen so that 99 % of the images have no image of another label this close (limited to 0.85 to 0.99)"
        )

    @property
    def best(self) -> tuple[Split, Classifier | None]:
        """The split to go by, and what was fitted: leak-aware where that can be measured, else naive."""
        number = 0 if self.leak_aware.scores is None else 1
        return self.splits[number], self.fitted[number]


def measure(trial: Trial) -> Outcome:
    """Split the rows, fit to one side, and score the other, naively and leak-aware.

    Notes
    -----
    The regularisation is chosen once, on the leak-aware training rows, with twins kept together; so that the two
    figures differ by the pictures only. Time: that of two fits, of the search for twins (pairs of a label), and of
    the cross-validation.
    """
    require_finite(trial.X.mean(axis=0, dtype=np.float64), trial.X)  # those that only test too
    y, threshold = trial.y, trial.near_duplicate_threshold
    if threshold is None:
        threshold = near_duplicate_threshold(trial.X, y, random_state=trial.classifier.random_state)
    groups = near_duplicate_groups(trial.X, y, trial.hashes, threshold=threshold)
    seed = trial.classifier.random_state
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
    return Outcome(
        trial,
        threshold,
        groups,
        splits,
        (naive, aware),
        _measured(trial, splits[0], naive),
        _measured(trial, splits[1], aware),
    )


def _fit(trial: Trial, classifier: Classifier, split: Split, groups: Rows) -> Classifier | None:
    """Fit to the training rows of a split; None where they are of fewer than two labels."""
    if trial.is_fitted:
        return trial.classifier
    if len(np.unique(trial.y[split.train])) < 2:
        return None
    return replace(classifier).fit(trial.X[split.train], trial.y[split.train], groups[split.train])


def _measured(trial: Trial, split: Split, fitted: Classifier | None) -> Measured:
    reason = split.reason or ("" if fitted is not None else "fewer than two labels are left to train with")
    n_train, n_test = len(split.train), len(split.test)
    if reason or fitted is None:
        return Measured(n_train, n_test, split.n_near_duplicates, split.not_evaluable, reason)
    found = score(trial.y[split.test], fitted.predict_proba(trial.X[split.test]), fitted.classes_)
    return Measured(n_train, n_test, split.n_near_duplicates, split.not_evaluable, "", found)


# -- what stands beside the figure ---------------------------------------------------------------------------


def find_mistakes(outcome: Outcome, n_most: int = MOST_MISTAKES) -> tuple[Mistake, ...]:
    """Give the test pictures that are told wrongly, the most confident first."""
    trial, (split, fitted) = outcome.trial, outcome.best
    if fitted is None or not len(split.test):
        return ()
    shares = fitted.predict_proba(trial.X[split.test])
    told, confidence = fitted.classes_[shares.argmax(axis=1)], shares.max(axis=1)
    wrong = np.flatnonzero(told != trial.y[split.test])
    wrong = wrong[np.argsort(-confidence[wrong], kind="stable")][:n_most]
    return tuple(
        Mistake(uri, str(trial.y[row]), str(told[i]), float(confidence[i]))
        for i, row, uri in zip(wrong, split.test[wrong], trial.named(split.test[wrong]), strict=True)
    )


def learning_curve(outcome: Outcome) -> tuple[LearningPoint, ...]:
    """Fit to more and more of the training rows, each class with its share, and score the same test rows."""
    trial, (split, fitted) = outcome.trial, outcome.best
    if fitted is None or not len(split.test) or not len(split.train):
        return ()
    own = trial.y[split.train]
    points: dict[int, LearningPoint] = {}
    for share in _SHARES:
        rows = split.train[draw_rows(own, round(share * len(own)), fitted.random_state)]
        if len(rows) in points or len(np.unique(trial.y[rows])) < 2:
            continue
        one, n_train = fitted, fitted.n_samples_  # of a trained model, more than are here if these were drawn
        if len(rows) < len(split.train):
            one = replace(fitted, regularization=fitted.regularization_).fit(trial.X[rows], trial.y[rows])
            n_train = len(rows)
        right = int((one.predict(trial.X[split.test]) == trial.y[split.test]).sum())
        points[len(rows)] = LearningPoint(n_train, right / len(split.test), wilson_interval(right, len(split.test)))
    return tuple(points.values())


def baselines(outcome: Outcome, looks: Histograms | None = None) -> tuple[Baseline, ...]:
    """Say what far simpler things reach: the most frequent label, and the colours of the pictures.

    Parameters
    ----------
    outcome : Outcome
        Of the trial that they stand beside.
    looks : callable, optional
        Gives a colour histogram of each picture that can be read, by its uri.
    """
    trial, (split, _) = outcome.trial, outcome.best
    if not len(split.test) or not len(split.train):
        return ()
    y, train, test = trial.y, split.train, split.test
    labels, counts = np.unique(y[train], return_counts=True)
    right = int((y[test] == labels[counts.argmax()]).sum())
    most = Baseline(
        f"always the most frequent label, '{labels[counts.argmax()]}'",
        right / len(test),
        wilson_interval(right, len(test)),
    )
    return most, _colours(outcome, train, test, looks)


def _colours(outcome: Outcome, train: Rows, test: Rows, looks: Histograms | None) -> Baseline:
    trial, name = outcome.trial, "colour histogram"
    seed = trial.classifier.random_state
    if looks is None:
        return Baseline(name, reason="the pictures were not looked at")
    train = train[draw_rows(trial.y[train], _BASELINE_TRAIN, seed)]
    test = test[draw_rows(trial.y[test], _BASELINE_TEST, seed)]
    names = [trial.named(rows) for rows in (train, test)]
    found = looks([*names[0], *names[1]])
    is_there = [np.array([uri in found for uri in own], bool) for own in names]
    train, test = train[is_there[0]], test[is_there[1]]
    if len(test) < len(found) / 10 or len(np.unique(trial.y[train])) < 2 or not len(test):
        return Baseline(name, reason="the pictures cannot be read any more")
    H = [np.stack([found[uri] for uri in own if uri in found]).astype(np.float32) for own in names]
    one = Classifier(random_state=seed, balanced=trial.classifier.balanced)
    one.fit(H[0], trial.y[train], outcome.groups[train])  # near-duplicates together, as for what it stands beside
    right = int((one.predict(H[1]) == trial.y[test]).sum())
    return Baseline(
        f"{name}, of {len(train):,} training and {len(test):,} test pictures",
        right / len(test),
        wilson_interval(right, len(test)),
    )
