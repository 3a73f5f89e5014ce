"""What is found when a classifier is measured: plain values, which reports and JSON show."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from featurepress.analysis.scores import Scores


@dataclass(frozen=True)
class Measured:
    """What one way of splitting the pictures gives.

    Attributes
    ----------
    n_train, n_test : int
        Pictures on either side.
    n_near_duplicates : int
        Test pictures that were dropped, because a near-duplicate of theirs trains.
    not_evaluable : tuple of str
        Classes without a picture to test.
    reason : str
        Why nothing can be measured; "" where it can.
    scores : Scores or None
        None where nothing can be measured.
    """

    n_train: int
    n_test: int
    n_near_duplicates: int = 0
    not_evaluable: tuple[str, ...] = ()
    reason: str = ""
    scores: Scores | None = None


@dataclass(frozen=True)
class Mistake:
    """A test picture that is told wrongly: the right label, the one that is told, and how confidently."""

    uri: str
    label: str
    predicted: str
    probability: float


@dataclass(frozen=True)
class Baseline:
    """What something far simpler reaches on the same test pictures; `reason` says why it was not measured."""

    name: str
    accuracy: float | None = None
    interval: tuple[float, float] | None = None
    reason: str = ""


@dataclass(frozen=True)
class LearningPoint:
    """The accuracy on the same test pictures, of a classifier fitted to `n_train` of the training pictures."""

    n_train: int
    accuracy: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class Evaluation:
    """How well a model tells pictures.

    Attributes
    ----------
    model : mapping
        Of the model: ``name``, ``kind``, ``n_features``, ``backbone``, ``fingerprint``, ``labels``, ``trained_on``.
    features : str
        Where the test pictures' features lie.
    split : str
        How training and test were told apart, in words.
    near_duplicate_rule : str
        From which cosine on pictures of a label are near-duplicates, and why, in words.
    near_duplicate_threshold : float
        That cosine.
    naive : Measured
        With every test picture; near-duplicates may stand on both sides.
    leak_aware : Measured
        Without those: the figure to go by.
    mistakes : tuple of Mistake
        The most confident first; of the leak-aware test, or of the naive one where nothing else is measurable.
    baselines : tuple of Baseline
        Measured on the same pictures as `mistakes`.
    learning_curve : tuple of LearningPoint
        Likewise, from few training pictures to all.
    notes : tuple of str
        What a reader must know besides, such as that a sample was measured.
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
    notes: tuple[str, ...] = field(default=())

    @property
    def best(self) -> Measured:
        """The measurement to go by: leak-aware where that can be measured, else naive."""
        return self.naive if self.leak_aware.scores is None else self.leak_aware

    def to_json(self) -> dict[str, Any]:
        """Give the evaluation as JSON values."""
        return asdict(self)
