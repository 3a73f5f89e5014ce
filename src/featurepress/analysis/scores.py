"""Scores of predictions: accuracy with interval, F1, top-3, per class, confusion matrix, calibration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from featurepress.errors import AnalysisError

if TYPE_CHECKING:
    import numpy.typing as npt

    Labels = npt.NDArray[np.str_]

_BINS = 10  # equally wide bins of confidence
_BLOCK_ROWS = 8_192  # sorted at once: 64 MB with 1,000 classes


@dataclass(frozen=True)
class ClassScore:
    """Number of test images of a class, and its precision, recall and F1."""

    label: str
    n_samples: int
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class Bin:
    """Predictions of similar confidence: their number, mean confidence and accuracy."""

    n_samples: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Scores:
    """Scores of predictions.

    Attributes
    ----------
    n_samples : int
        Number of test images.
    accuracy : float
        Share of images whose most probable class is the true one.
    interval : tuple of float
        Wilson's 95 % confidence interval of the accuracy, for independent images.
    macro_f1 : float
        Mean F1 over the tested classes.
    top_3 : float
        Share of images whose true class is among the three most probable.
    calibration_error : float
        Expected calibration error: mean distance of confidence and accuracy over ten bins, weighted by images.
    classes : tuple of ClassScore
        One per tested class.
    confusion : tuple of tuple of int
        Rows are true classes, columns predicted ones, both in the order of `labels`.
    labels : tuple of str
        All classes of the classifier and of the test, sorted.
    reliability : tuple of Bin
        In ascending order of confidence, without empty bins.

    References
    ----------
    Wilson: Probable inference, the law of succession, and statistical inference. JASA 22, 1927.
    Guo, Pleiss, Sun, Weinberger: On calibration of modern neural networks. ICML 2017.
    """

    n_samples: int
    accuracy: float
    interval: tuple[float, float]
    macro_f1: float
    top_3: float
    calibration_error: float
    classes: tuple[ClassScore, ...]
    confusion: tuple[tuple[int, ...], ...]
    labels: tuple[str, ...]
    reliability: tuple[Bin, ...]


def score(y: Labels, probabilities: npt.NDArray[np.float64], classes: Labels) -> Scores:
    """Return the scores of predicted probabilities: array (n_samples, n_classes), columns as `classes`.

    Images of labels that the classifier does not know count as mistakes. Without images it raises AnalysisError.
    """
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    if not len(y):
        raise AnalysisError("There are no test images.")
    predicted, confidence = classes[probabilities.argmax(axis=1)], probabilities.max(axis=1)
    is_correct = predicted == y
    tested, labels = np.unique(y), np.union1d(np.unique(y), classes)
    precision, recall, f1, counts = precision_recall_fscore_support(y, predicted, labels=tested, zero_division=0.0)
    bins = _reliability(confidence, is_correct)
    return Scores(
        n_samples=len(y),
        accuracy=float(is_correct.mean()),
        interval=wilson_interval(int(is_correct.sum()), len(y)),
        macro_f1=float(f1.mean()),
        top_3=_top_3(y, probabilities, classes),
        calibration_error=sum(group.n_samples * abs(group.confidence - group.accuracy) for group in bins) / len(y),
        classes=tuple(
            ClassScore(str(label), int(n), float(p), float(r), float(f))
            for label, n, p, r, f in zip(tested, counts, precision, recall, f1, strict=True)
        ),
        confusion=tuple(tuple(map(int, row)) for row in confusion_matrix(y, predicted, labels=labels)),
        labels=tuple(labels.tolist()),
        reliability=bins,
    )


def _top_3(y: Labels, probabilities: npt.NDArray[np.float64], classes: Labels) -> float:
    """Return the top-3 accuracy, block by block: scikit-learn's function refuses labels without a column."""
    n_correct = 0
    for start in range(0, len(y), _BLOCK_ROWS):
        rows = slice(start, start + _BLOCK_ROWS)
        best = classes[np.argsort(-probabilities[rows], axis=1, kind="stable")[:, :3]]
        n_correct += int((best == y[rows, None]).any(axis=1).sum())
    return n_correct / len(y)


def wilson_interval(n_correct: int, n_samples: int) -> tuple[float, float]:
    """Return Wilson's 95 % confidence interval of a share."""
    from scipy.stats import binomtest

    interval = binomtest(n_correct, n_samples).proportion_ci(0.95, method="wilson")
    share = n_correct / n_samples
    return min(share, float(interval.low)), max(share, float(interval.high))  # against rounding


def _reliability(confidence: npt.NDArray[np.float64], is_correct: npt.NDArray[np.bool_]) -> tuple[Bin, ...]:
    number = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
    return tuple(
        Bin(int(rows.sum()), float(confidence[rows].mean()), float(is_correct[rows].mean()))
        for rows in (number == i for i in range(_BINS))
        if rows.any()
    )
