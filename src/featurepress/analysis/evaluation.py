"""Results of an evaluation as plain values, for reports and JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from featurepress.analysis.scores import Scores
from featurepress.features.notebook import N_ROWS, to_html


@dataclass(frozen=True)
class Measured:
    """Measurement with one split.

    Attributes
    ----------
    n_train, n_test : int
        Number of training and test images.
    n_near_duplicates : int
        Test images that were left out because they have a near-duplicate in training.
    not_evaluable : tuple of str
        Classes without test images.
    reason : str
        Why nothing can be measured; "" if `scores` exist.
    scores : Scores or None
        None if nothing can be measured.
    """

    n_train: int
    n_test: int
    n_near_duplicates: int = 0
    not_evaluable: tuple[str, ...] = ()
    reason: str = ""
    scores: Scores | None = None


@dataclass(frozen=True)
class Mistake:
    """A test image with a wrong prediction: its true label, and the predicted one with its probability."""

    uri: str
    label: str
    predicted: str
    probability: float


@dataclass(frozen=True)
class Baseline:
    """Accuracy of a simple method on the same test images; `reason` says why it was not measured."""

    name: str
    accuracy: float | None = None
    interval: tuple[float, float] | None = None
    reason: str = ""


@dataclass(frozen=True)
class LearningPoint:
    """Accuracy on the same test images after fitting to `n_train` training images."""

    n_train: int
    accuracy: float
    interval: tuple[float, float]


@dataclass(frozen=True, repr=False)
class Evaluation:
    """Results of evaluating a model.

    Attributes
    ----------
    model : mapping
        Facts about the model: ``name``, ``kind``, ``n_features``, ``backbone``, ``fingerprint``, ``labels``,
        ``trained_on``.
    features : str
        Location of the test images' feature set.
    split : str
        How training and test images were separated, in words.
    near_duplicate_rule : str
        How `near_duplicate_threshold` was chosen, in words.
    near_duplicate_threshold : float
        Cosine from which two images of a label count as near-duplicates.
    naive : Measured
        With all test images, including near-duplicates of training images.
    leak_aware : Measured
        Without test images that have a near-duplicate in training: the figure to use.
    mistakes : tuple of Mistake
        Highest confidence first, of the `best` measurement.
    baselines : tuple of Baseline
        On the test images of the `best` measurement.
    learning_curve : tuple of LearningPoint
        On the same test images, in ascending order of `n_train`.
    notes : tuple of str
        Caveats, for example that a sample was measured.
    """

    model: dict[str, Any]
    features: str
    split: str
    near_duplicate_rule: str
    near_duplicate_threshold: float
    naive: Measured
    leak_aware: Measured
    mistakes: tuple[Mistake, ...] = ()
    baselines: tuple[Baseline, ...] = ()
    learning_curve: tuple[LearningPoint, ...] = ()
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"<Evaluation of '{self.model['name']}' on '{self.features}': {_accuracy(self.best)}>"

    def _repr_html_(self) -> str:
        """Return the evaluation as HTML for notebooks: facts, and the most confident mistakes."""
        facts = {
            "model": self.model["name"],
            "features": self.features,
            "split": self.split,
            "leak-aware": _accuracy(self.leak_aware),
            "naive": _accuracy(self.naive),
            "mistakes": len(self.mistakes),
            **{f"note {i}": note for i, note in enumerate(self.notes, 1)},
        }
        return to_html("Evaluation", facts, [asdict(mistake) for mistake in self.mistakes[:N_ROWS]])

    @property
    def best(self) -> Measured:
        """The leak-aware measurement if it has scores, else the naive one."""
        return self.naive if self.leak_aware.scores is None else self.leak_aware

    def to_json(self) -> dict[str, Any]:
        """Return the evaluation as JSON values."""
        return asdict(self)


def _accuracy(measured: Measured) -> str:
    """Return the accuracy of a measurement in words, or why there is none."""
    scores = measured.scores
    if scores is None:
        return f"not measured: {measured.reason}"
    low, high = scores.interval
    return f"accuracy {scores.accuracy:.1%} ({low:.1%} to {high:.1%}) on {scores.n_samples:,} images"
