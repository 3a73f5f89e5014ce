"""Fit a classifier to more rows than fit in memory, batch by batch: sums and stochastic gradients."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from featurepress.analysis.classifier import CHOOSING_ROWS, Classifier, draw_rows, linear_arrays
from featurepress.analysis.moments import require_finite
from featurepress.analysis.samples import Samples
from featurepress.errors import AnalysisError

if TYPE_CHECKING:
    import numpy.typing as npt

    from featurepress.specs import Features

    Codes = npt.NDArray[np.int32]

Heard = Callable[[int], None]  # hears how many more rows have been read

_RUNS, _RUN_ROWS, _STEPS = 32, 4_096, 16  # so many runs of rows are mixed, a sixteenth of each at a time
_MOST_PASSES = 20
_SETTLED = 0.005  # the log loss of the drawn rows falls by less than this share: enough


def fit_streamed(classifier: Classifier, samples: Samples, heard: Heard = lambda n_rows: None) -> Classifier:
    """Fit to rows that stay on disk.

    Parameters
    ----------
    classifier : Classifier
        Its settings.
    samples : Samples
        What it is fitted to.
    heard : callable, optional
        Hears how many more rows have been read.

    Returns
    -------
    Classifier
        Fitted.

    Raises
    ------
    AnalysisError
        It is of k nearest neighbours, which needs all rows in memory; or features are no numbers.

    Notes
    -----
    The nearest mean is the same as in memory, from sums. Logistic regression is scikit-learn's `SGDClassifier`
    (averaged stochastic gradient, one class against all others), so not the same as in memory, but near: rows of 32
    places of the set are mixed, since a set in order of its folders has one class at a time. It passes over them
    until the log loss of 4,000 drawn ones settles, 20 times at most. Memory: about 8,192 rows.
    """
    require_streamable(classifier, samples)
    mean, scale = _spread(samples, heard)
    drawn = samples.take(draw_rows(samples.codes, CHOOSING_ROWS, classifier.random_state))
    stream = _Stream(samples, mean, scale, classifier.random_state)
    regularization = None
    if classifier.kind == "logistic":
        Z = _standardised(drawn.matrix(), mean, scale)
        regularization = classifier.regularization or classifier.choose(Z, drawn.y)
        arrays = _descend(classifier, stream, (Z, drawn.codes), regularization, heard)
    else:
        arrays = _means(classifier, stream, heard)
    return classifier.take(
        classes=samples.classes,
        mean=mean,
        scale=scale,
        n_samples=len(samples),
        regularization=regularization,
        arrays=arrays,
    )


def require_streamable(classifier: Classifier, samples: Samples) -> None:
    """Raise AnalysisError if a classifier needs all rows in memory."""
    if classifier.kind == "knn":
        raise AnalysisError(
            f"k nearest neighbours keep all features in memory, which are {samples.n_bytes / 2**30:.1f} GiB here. "
            "Reduce them, take --kind logistic, or allow more with --in-memory-bytes."
        )


def _spread(samples: Samples, heard: Heard) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return mean and deviation of each feature (1 where it is 0), merged batch by batch (Chan et al. 1982)."""
    n, mean = 0, np.zeros(samples.features.n_features)
    scatter = np.zeros_like(mean)
    for places, X in samples.batches():
        own, m = X.mean(axis=0, dtype=np.float64), len(places)
        require_finite(own, X)
        apart = own - mean
        scatter += ((X - own) ** 2).sum(axis=0) + apart**2 * n * m / (n + m)
        mean += apart * m / (n + m)
        n += m
        heard(m)
    deviations = np.sqrt(scatter / n)
    return mean, np.where(deviations > 0, deviations, 1.0)


def _standardised(X: Any, mean: Any, scale: Any) -> Features:
    standardised: Features = ((X - mean) / scale).astype(np.float32)
    return standardised


@dataclass(frozen=True)
class _Stream:
    """The standardised rows, mixed."""

    samples: Samples
    mean: npt.NDArray[np.float64]
    scale: npt.NDArray[np.float64]
    random_state: int

    def batches(self, number: int) -> Iterator[tuple[Features, Codes]]:
        """Yield all rows once, mixed, in another order for each `number` of a pass.

        Runs of rows are read side by side, each in as many steps as the others, so that all end together: rows of
        one class alone, at the end of a pass, would undo what was learned of the others.
        """
        draw = np.random.default_rng([self.random_state, number])
        starts = draw.permutation(np.arange(0, len(self.samples.features), _RUN_ROWS))
        for group in np.array_split(starts, -(-len(starts) // _RUNS)):
            for taken in zip(*map(self._run, group.tolist()), strict=True):
                X, codes = (np.concatenate(ends) for ends in zip(*taken, strict=True))
                order = draw.permutation(len(codes))
                if len(order):
                    yield _standardised(X[order], self.mean, self.scale), codes[order]

    def _run(self, start: int) -> Iterator[tuple[Features, Codes]]:
        """Yield the samples in one run of rows, in `_STEPS` steps."""
        samples, stop = self.samples, min(start + _RUN_ROWS, len(self.samples.features))
        edges = np.linspace(start, stop, _STEPS + 1).round().astype(int)
        n_features, row = samples.features.n_features, start
        batches = samples.features.record_batches(-(-_RUN_ROWS // _STEPS), ["features"], start, stop)
        held = np.empty((0, n_features), np.float32)
        for low, high in itertools.pairwise(edges):
            while row < high:
                X = next(batches).column("features").flatten().to_numpy().reshape(-1, n_features)
                held, row = np.concatenate([held, X]), row + len(X)
            first, last = np.searchsorted(samples.rows, (low, high))
            yield held[samples.rows[first:last] - low], samples.codes[first:last]
            held = held[high - low :]


def _weights(classifier: Classifier, samples: Samples) -> npt.NDArray[np.float64]:
    """Return the weight of a row of each class."""
    counts = np.bincount(samples.codes, minlength=len(samples.classes))
    return len(samples) / (len(counts) * counts) if classifier.balanced else np.ones(len(counts))


def _descend(
    classifier: Classifier, stream: _Stream, drawn: tuple[Features, Codes], regularization: float, heard: Heard
) -> dict[str, npt.NDArray[Any]]:
    """Fit by averaged stochastic gradients until the loss settles."""
    from sklearn.linear_model import SGDClassifier
    from sklearn.metrics import log_loss

    samples = stream.samples
    codes, weights = np.arange(len(samples.classes)), _weights(classifier, samples)
    alpha = 1 / (regularization * len(samples))  # scikit-learn's C weighs the sum of losses, alpha the penalty
    # Steps that suit rows whose mean square is n_features (Bach and Moulines 2013), and become smaller: the mix of
    # classes is never even.
    how: dict[str, Any] = {"learning_rate": "invscaling", "power_t": 0.25, "average": True}
    how |= {"eta0": 1 / samples.features.n_features, "random_state": classifier.random_state}
    one = SGDClassifier(loss="log_loss", alpha=alpha, **how)
    losses = [np.inf]
    for number in range(_MOST_PASSES):
        for Z, own in stream.batches(number):
            one.partial_fit(Z, own, codes, sample_weight=weights[own])
            heard(len(own))
        losses.append(log_loss(drawn[1], one.predict_proba(drawn[0]), labels=codes))
        if losses[-1] > losses[-2] * (1 - _SETTLED):
            break
    arrays = linear_arrays(one)
    return arrays if len(codes) == 2 else {**arrays, "one_by_one": np.array(True)}


def _means(classifier: Classifier, stream: _Stream, heard: Heard) -> dict[str, npt.NDArray[Any]]:
    """Return the mean of each class, and the variance about them, from sums."""
    samples = stream.samples
    n_classes, n_features = len(samples.classes), samples.features.n_features
    sums, squares = np.zeros((n_classes, n_features)), 0.0
    for Z, codes in stream.batches(0):
        np.add.at(sums, codes, Z)
        squares += float((Z.astype(np.float64) ** 2).sum())
        heard(len(codes))
    counts = np.bincount(samples.codes, minlength=n_classes)
    means = sums / counts[:, None]
    apart = squares - float((counts[:, None] * means**2).sum())
    variance = apart / (n_features * max(1, len(samples) - n_classes))
    shares = np.full(n_classes, 1 / n_classes) if classifier.balanced else counts / counts.sum()
    return {"means": means, "variance": np.array(max(variance, 1e-12)), "shares": shares}
