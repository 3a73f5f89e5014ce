"""Fit a classifier to more rows than fit in memory, batch by batch: sums and stochastic gradients."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from featurepress.analysis.classifier import (
    CROSS_VALIDATION_ROWS,
    Classifier,
    centroid_arrays,
    draw_rows,
    logistic_arrays,
    spread,
)
from featurepress.analysis.samples import Samples
from featurepress.errors import AnalysisError
from featurepress.features.feature_set import record_batches
from featurepress.features.parts import matrix_of

if TYPE_CHECKING:
    import numpy.typing as npt

    from featurepress.specs import Features

    Codes = npt.NDArray[np.int32]
    Arrays = dict[str, npt.NDArray[Any]]

OnRows = Callable[[int], None]  # called with the number of rows read since the last call

_RUNS, _RUN_ROWS, _STEPS = 32, 4_096, 16  # this many runs of rows are mixed, a sixteenth of each at a time
_MOST_PASSES = 20
_CONVERGED = 0.005  # stop when the log loss of the drawn rows falls by less than this share


def fit_streamed(classifier: Classifier, samples: Samples, on_rows: OnRows = lambda n_rows: None) -> Classifier:
    """Fit to rows that stay on disk; `on_rows` is called with the number of rows read since the last call.

    Raises
    ------
    AnalysisError
        The kind is knn, which needs all rows in memory; or features are NaN or infinite.

    Notes
    -----
    The centroids are the same as in memory, from sums. Logistic regression is scikit-learn's `SGDClassifier`
    (averaged stochastic gradient, one class against all others), so similar to the one in memory, but not the same.
    Rows from 32 positions of the set are mixed, since a set in order of its folders has one class at a time. Passes
    over them are repeated until the log loss of 4,000 drawn rows converges, at most 20 times. Memory: about 8,192
    rows.
    """
    require_streamable(classifier, samples)
    mean, scale = spread(_counted(samples, on_rows))
    stream = _Stream(samples, mean, scale, classifier.random_state)
    fit = _descend if classifier.kind == "logistic" else _centroids
    fitted = {"classes": samples.classes, "mean": mean, "scale": scale, "n_samples": np.array(len(samples))}
    return classifier.set_fitted(fitted | fit(classifier, stream, on_rows))


def require_streamable(classifier: Classifier, samples: Samples) -> None:
    """Raise AnalysisError if a classifier needs all rows in memory."""
    if classifier.kind == "knn":
        raise AnalysisError(
            f"The kind knn keeps all features in memory, here {samples.n_bytes / 2**30:.1f} GiB. Reduce them, use "
            "--kind logistic, or allow more with --in-memory-bytes."
        )


def _counted(samples: Samples, on_rows: OnRows) -> Iterator[Features]:
    for _, X in samples.batches():
        yield X
        on_rows(len(X))


@dataclass(frozen=True)
class _Stream:
    """The standardised rows, mixed."""

    samples: Samples
    mean: npt.NDArray[np.float64]
    scale: npt.NDArray[np.float64]
    random_state: int

    def standardised(self, X: Features) -> Features:
        """Return rows as the classifier standardises them."""
        standardised: Features = ((X - self.mean) / self.scale).astype(np.float32)
        return standardised

    def batches(self, number: int) -> Iterator[tuple[Features, Codes]]:
        """Yield all rows once, mixed, in another order for each `number` of a pass.

        Runs of rows are read side by side, each in the same number of steps, so that all end together. Otherwise
        the last rows of a pass, of a single class, would undo what was learned about the others.
        """
        draw = np.random.default_rng([self.random_state, number])
        starts = draw.permutation(np.arange(0, len(self.samples.features), _RUN_ROWS))
        for group in np.array_split(starts, -(-len(starts) // _RUNS)):
            for taken in zip(*map(self._run, group.tolist()), strict=True):
                X, codes = (np.concatenate(ends) for ends in zip(*taken, strict=True))
                order = draw.permutation(len(codes))
                if len(order):
                    yield self.standardised(X[order]), codes[order]

    def _run(self, start: int) -> Iterator[tuple[Features, Codes]]:
        """Yield the samples in one run of rows, in `_STEPS` steps."""
        samples, stop = self.samples, min(start + _RUN_ROWS, len(self.samples.features))
        edges = np.linspace(start, stop, _STEPS + 1).round().astype(int)
        batches = record_batches(samples.features, _RUN_ROWS // _STEPS, ["features"], range(start, stop))
        waiting = np.empty((0, samples.features.n_features), np.float32)
        for low, high in itertools.pairwise(edges):
            while len(waiting) < high - low:
                waiting = np.concatenate([waiting, matrix_of(next(batches))])
            first, last = np.searchsorted(samples.rows, (low, high))
            yield waiting[samples.rows[first:last] - low], samples.codes[first:last]
            waiting = waiting[high - low :]


def _descend(classifier: Classifier, stream: _Stream, on_rows: OnRows) -> Arrays:
    """Fit by averaged stochastic gradients until the loss converges."""
    from sklearn.linear_model import SGDClassifier
    from sklearn.metrics import log_loss
    from sklearn.utils import compute_class_weight

    samples = stream.samples
    drawn = samples.take(draw_rows(samples.codes, CROSS_VALIDATION_ROWS, classifier.random_state))
    Z_drawn = stream.standardised(drawn.matrix())
    regularization = classifier.regularization or classifier.choose(Z_drawn, drawn.y)
    codes = np.arange(len(samples.classes))
    weights = compute_class_weight("balanced" if classifier.balanced else None, classes=codes, y=samples.codes)
    sgd = SGDClassifier(
        loss="log_loss",
        alpha=1 / (regularization * len(samples)),  # scikit-learn's C weighs the sum of losses, alpha the penalty
        # Steps that suit rows whose mean square is n_features (Bach and Moulines 2013), and become smaller, because
        # the mix of classes is never even.
        learning_rate="invscaling",
        power_t=0.25,
        eta0=1 / samples.features.n_features,
        average=True,
        random_state=classifier.random_state,
    )
    losses = [np.inf]
    for number in range(_MOST_PASSES):
        for Z, own in stream.batches(number):
            sgd.partial_fit(Z, own, codes, sample_weight=weights[own])
            on_rows(len(own))
        losses.append(log_loss(drawn.codes, sgd.predict_proba(Z_drawn), labels=codes))
        if losses[-1] > losses[-2] * (1 - _CONVERGED):
            break
    arrays = logistic_arrays(sgd, regularization)
    return arrays if len(codes) == 2 else {**arrays, "one_vs_rest": np.array(True)}


def _centroids(classifier: Classifier, stream: _Stream, on_rows: OnRows) -> Arrays:
    """Compute the class means and the variance about them from sums."""
    samples = stream.samples
    n_classes = len(samples.classes)
    sums, squares = np.zeros((n_classes, samples.features.n_features)), 0.0
    for Z, codes in stream.batches(0):
        np.add.at(sums, codes, Z)
        squares += float((Z.astype(np.float64) ** 2).sum())
        on_rows(len(codes))
    counts = np.bincount(samples.codes, minlength=n_classes)
    return centroid_arrays(sums, squares, counts, balanced=classifier.balanced)
