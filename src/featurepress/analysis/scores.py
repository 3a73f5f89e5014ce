"""How good predictions are: accuracy with its interval, F1, top-3, each class, confusion, calibration."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from featurepress.errors import AnalysisError

if TYPE_CHECKING:
    import numpy.typing as npt

    Labels = npt.NDArray[np.str_]

_BINS = 10  # of confidence, equally wide
_BLOCK_ROWS = 8_192  # that are sorted at once: of 1,000 classes, 64 MB
_Z = 1.959963984540054  # the 97.5 % point of the normal distribution


@dataclass(frozen=True)
class ClassScore:
    """How well one class is told: its pictures in the test, precision, recall and F1."""

    label: str
    n_samples: int
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class Bin:
    """Predictions of about one confidence: how many, how confident on average, and the share that is right."""

    n_samples: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Scores:
    """How good predictions are.

    Attributes
    ----------
    n_samples : int
        Test pictures.
    accuracy : float
        The share whose most probable class is the right one.
    interval : tuple of float
        Between these the accuracy lies with 95 % confidence, if the pictures are independent.
    macro_f1 : float
        Mean F1 of the classes that are tested.
    top_3 : float
        The share whose right class is among the three most probable.
    calibration_error : float
        Expected calibration error: the mean distance of confidence and accuracy over ten bins.
    classes : tuple of ClassScore
        Of each class that is tested.
    confusion : tuple of tuple of int
        Row: the class that is right, column: the one that is told; both in the order of `labels`.
    labels : tuple of str
        All classes, of the classifier and of the test, sorted.
    reliability : tuple of Bin
        From the least confident to the most; bins without pictures are left out.

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

    def to_json(self) -> dict[str, Any]:
        """Give the scores as JSON values."""
        return asdict(self)


def score(y: Labels, probabilities: npt.NDArray[np.float64], classes: Labels) -> Scores:
    """Compare predictions with the truth.

    Parameters
    ----------
    y : array (n_samples,) of str
        The right labels; those that the classifier does not know count as wrong.
    probabilities : array (n_samples, n_classes)
        Of each class.
    classes : array (n_classes,) of str
        What the columns stand for, sorted.
    """
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    if not len(y):
        raise AnalysisError("There is no picture to test with.")
    told, confidence = classes[probabilities.argmax(axis=1)], probabilities.max(axis=1)
    right = told == y
    tested, labels = np.unique(y), np.union1d(np.unique(y), classes)
    precision, recall, f1, counts = precision_recall_fscore_support(y, told, labels=tested, zero_division=0.0)
    bins = _reliability(confidence, right)
    return Scores(
        n_samples=len(y),
        accuracy=float(right.mean()),
        interval=wilson(int(right.sum()), len(y)),
        macro_f1=float(f1.mean()),
        top_3=_top_3(y, probabilities, classes),
        calibration_error=sum(one.n_samples * abs(one.confidence - one.accuracy) for one in bins) / len(y),
        classes=tuple(
            ClassScore(str(label), int(n), float(p), float(r), float(f))
            for label, n, p, r, f in zip(tested, counts, precision, recall, f1, strict=True)
        ),
        confusion=tuple(tuple(map(int, row)) for row in confusion_matrix(y, told, labels=labels)),
        labels=tuple(labels.tolist()),
        reliability=bins,
    )


def _top_3(y: Labels, probabilities: npt.NDArray[np.float64], classes: Labels) -> float:
    """Give the share whose right class is among the three most probable, some rows after the others."""
    n_right = 0
    for start in range(0, len(y), _BLOCK_ROWS):
        rows = slice(start, start + _BLOCK_ROWS)
        best = classes[np.argsort(-probabilities[rows], axis=1, kind="stable")[:, :3]]
        n_right += int((best == y[rows, None]).any(axis=1).sum())
    return n_right / len(y)


def wilson(n_right: int, n_samples: int) -> tuple[float, float]:
    """Give the 95 % interval of a share (Wilson's score interval)."""
    share, weight = n_right / n_samples, _Z**2 / n_samples
    middle = (share + weight / 2) / (1 + weight)
    half = _Z * math.sqrt(share * (1 - share) / n_samples + weight / (4 * n_samples)) / (1 + weight)
    return min(share, max(0.0, middle - half)), max(share, min(1.0, middle + half))  # rounding aside


def _reliability(confidence: npt.NDArray[np.float64], right: npt.NDArray[np.bool_]) -> tuple[Bin, ...]:
    number = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
    found = []
    for i in range(_BINS):
        own = number == i
        if own.any():
            found.append(Bin(int(own.sum()), float(confidence[own].mean()), float(right[own].mean())))
    return tuple(found)
