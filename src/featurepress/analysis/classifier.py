"""Classifiers of features: scikit-learn's, including standardisation, stored as plain arrays."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from featurepress.analysis.moments import require_finite
from featurepress.analysis.splits import locations_of
from featurepress.errors import AnalysisError
from featurepress.settings import ClassifierSettings

if TYPE_CHECKING:
    import numpy.typing as npt

    from featurepress.specs import Features

    Labels = npt.NDArray[np.str_]

CHOSEN_FROM = tuple(10.0**power for power in range(-4, 3))  # regularisations tried by cross-validation
UNCHOSEN = 1.0  # with too few rows to cross-validate: scikit-learn's default
CHOOSING_ROWS = 4_000  # rows of the stratified sample for cross-validation
_FOLDS = 3
_BLOCK_ROWS = 16_384  # standardised at once: all rows in double precision would take four times the memory of X


@dataclass
class Classifier:
    """A classifier of features.

    Parameters
    ----------
    kind : str
        ``logistic``: multinomial logistic regression. ``knn``: the share of each class among the nearest
        neighbours, by the cosine of features minus their mean. ``centroid``: the nearest class mean.
    regularization : float, optional
        Inverse strength for logistic regression, scikit-learn's ``C``. By default the one of 1e-4, 1e-3, …, 100
        with the least log loss in 3-fold cross-validation on up to 4,000 rows, as far as each larger one still
        gains 1 %.
    n_neighbors : int
        Number of neighbours for knn.
    balanced : bool
        Whether all classes have the same weight.
    random_state : int
        Seed of the random samples.

    Attributes
    ----------
    classes_ : array (n_classes,) of str
        The labels, sorted.
    mean_, scale_ : array (n_features,) float64
        What is taken off each feature, and what it is divided by: the standard deviation, or 1 where there is none,
        and of knn.
    regularization_ : float or None
        Regularisation of the fitted logistic regression.
    n_samples_ : int
        Number of rows it was fitted to.
    """

    kind: str = "logistic"
    regularization: float | None = None
    n_neighbors: int = 5
    balanced: bool = False
    random_state: int = 0

    def __post_init__(self) -> None:
        ClassifierSettings(self.kind, self.regularization, self.n_neighbors, self.balanced, self.random_state)
        self._arrays: dict[str, npt.NDArray[Any]] = {}

    # -- fitting ---------------------------------------------------------------------------------------------

    def fit(self, X: Features, y: Labels, groups: npt.NDArray[np.int64] | None = None) -> Classifier:
        """Fit to rows in memory.

        Parameters
        ----------
        X : array (n_samples, n_features) float32
            The features.
        y : array (n_samples,) of str
            Their labels.
        groups : array (n_samples,) int64, optional
            Rows of a group are never on both sides of cross-validation: near-duplicates would favour too little
            regularisation.

        Raises
        ------
        AnalysisError
            There is only one class, or features are NaN or infinite.
        """
        require_classes(y, least=1)
        require_finite(X.mean(axis=0, dtype=np.float64), X)
        self.classes_, self.n_samples_ = np.unique(y), len(y)
        self.mean_ = X.mean(axis=0, dtype=np.float64)
        deviations = np.sqrt(sum(((rows - self.mean_) ** 2).sum(axis=0) for rows in _blocks(X)) / len(X))
        self.scale_ = np.where(deviations > 0, deviations, 1.0)
        if self.kind == "knn":
            self.scale_ = np.ones_like(deviations)
        Z, self.regularization_ = self._standardised(X), None
        if self.kind == "logistic":
            self.regularization_ = self.regularization or self.choose(Z, y, groups)
            self._arrays = linear_arrays(self._logistic(self.regularization_).fit(Z, y))
        elif self.kind == "knn":
            self._arrays = {"rows": Z, "labels": np.searchsorted(self.classes_, y)}
        else:
            self._arrays = self._centroids(Z, y)
        return self

    def _standardised(self, X: npt.NDArray[Any]) -> Features:
        standardised: Features = np.empty(X.shape, np.float32)
        for rows, own in zip(_blocks(X), _blocks(standardised), strict=True):
            own[:] = (rows - self.mean_) / self.scale_
        if self.kind == "knn":  # by cosine: to standardise each number would make as much of the last components of
            lengths = np.linalg.norm(standardised, axis=1, keepdims=True)  # a reduction as of the first
            np.divide(standardised, lengths, out=standardised, where=lengths > 0)
        return standardised

    def _logistic(self, regularization: float, *, is_rough: bool = False) -> Any:
        """Return scikit-learn's classifier; a rough one has a warm start and a larger tolerance."""
        from sklearn.linear_model import LogisticRegression

        weights = "balanced" if self.balanced else None
        how: dict[str, Any] = {"tol": 1e-3, "warm_start": True} if is_rough else {}
        return LogisticRegression(C=regularization, class_weight=weights, max_iter=5_000, **how)

    def choose(self, Z: Features, y: Labels, groups: npt.NDArray[np.int64] | None = None) -> float:
        """Return the regularisation with the least log loss in cross-validation, of standardised rows.

        Where there are too few rows, or groups of them, to be cross-validated, it is 1, scikit-learn's default.
        """
        rows = draw_rows(y, CHOOSING_ROWS, self.random_state)
        Z, y = Z[rows], y[rows]
        own = np.arange(len(y)) if groups is None else groups[rows]
        folds = [(self._logistic(1.0, is_rough=True), *sides) for sides in _folds(y, own)]
        if not folds:
            return UNCHOSEN
        losses: dict[float, float] = {}
        for regularization in CHOSEN_FROM:  # ascending: each fit starts from the one before it
            losses[regularization] = sum(_loss(fold, Z, y, regularization) for fold in folds)
            if len(losses) > 2 and losses[regularization] > 0.99 * min(list(losses.values())[:-1]):
                break  # larger values gain little, and take longest
        return min(losses, key=lambda one: losses[one])

    def _centroids(self, Z: Features, y: Labels) -> dict[str, npt.NDArray[Any]]:
        """Return the mean of each class, and the variance that rows have about it, over all features."""
        places = locations_of(np.searchsorted(self.classes_, y))
        counts = np.array([len(rows) for rows in places])
        means = np.stack([Z[rows].mean(axis=0, dtype=np.float64) for rows in places])
        apart = sum(float(((Z[rows] - mean) ** 2).sum()) for rows, mean in zip(places, means, strict=True))
        variance = apart / Z.shape[1] / max(1, len(y) - len(self.classes_))
        shares = np.full(len(counts), 1 / len(counts)) if self.balanced else counts / len(y)
        return {"means": means, "variance": np.array(max(variance, 1e-12)), "shares": shares}

    # -- use -------------------------------------------------------------------------------------------------

    def predict_proba(self, X: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Return the probability of each class: array (n_samples, n_classes), columns as `classes_`."""
        if not self._arrays:
            raise AnalysisError("This classifier has not been fitted: call fit first.")
        if X.ndim != 2 or X.shape[1] != len(self.mean_):
            raise AnalysisError(
                f"The classifier was fitted to {len(self.mean_):,} features a row. Got an array of shape {X.shape}."
            )
        Z = self._standardised(X)
        if self.kind == "knn":
            return self._votes(Z)
        if self.kind == "logistic":
            scores = Z @ self._arrays["coefficients"].T + self._arrays["intercepts"]
            return _one_by_one(scores) if "one_by_one" in self._arrays else _softmax(scores)
        means = self._arrays["means"]
        distances = (means**2).sum(axis=1) - 2 * Z.astype(np.float64) @ means.T  # less what all classes share
        return _softmax(np.log(self._arrays["shares"]) - distances / (2 * self._arrays["variance"]))

    def predict(self, X: npt.NDArray[Any]) -> Labels:
        """Return the most probable class of each row: array (n_samples,) of str."""
        shares = self.predict_proba(X)
        found: Labels = self.classes_[shares.argmax(axis=1)]
        return found

    def _votes(self, Z: Features) -> npt.NDArray[np.float64]:
        from sklearn.neighbors import NearestNeighbors

        rows, labels = self._arrays["rows"], self._arrays["labels"]
        n = min(self.n_neighbors, len(rows))
        search = NearestNeighbors(n_neighbors=n, algorithm="brute").fit(rows)
        found = labels[search.kneighbors(Z, return_distance=False)]
        votes = np.stack([(found == label).mean(axis=1) for label in range(len(self.classes_))], axis=1)
        if self.balanced:
            votes /= np.bincount(labels, minlength=len(self.classes_))
        shares: npt.NDArray[np.float64] = votes / votes.sum(axis=1, keepdims=True)
        return shares

    # -- storage ---------------------------------------------------------------------------------------------

    def to_bytes(self) -> bytes:
        """Return a fitted classifier for storage: NumPy's format, no pickle."""
        if not self._arrays:
            raise AnalysisError("This classifier has not been fitted: call fit first.")
        arrays: dict[str, Any] = {
            "kind": np.str_(self.kind),
            "n_neighbors": np.int64(self.n_neighbors),
            "balanced": np.bool_(self.balanced),
            "random_state": np.int64(self.random_state),
            "classes": self.classes_,
            "mean": self.mean_,
            "scale": self.scale_,
            "n_samples": np.int64(self.n_samples_),
            "regularization": np.float64(self.regularization_ or np.nan),
        }
        arrays |= {f"own_{name}": values for name, values in self._arrays.items()}
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> Classifier:
        """Return a classifier from the bytes of `to_bytes`."""
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            regularization = float(arrays["regularization"])
            one = cls(
                str(arrays["kind"]),
                n_neighbors=int(arrays["n_neighbors"]),
                balanced=bool(arrays["balanced"]),
                random_state=int(arrays["random_state"]) if "random_state" in arrays.files else 0,
            )
            own = [name for name in arrays.files if name.startswith("own_")]
            return one.take(
                classes=arrays["classes"],
                mean=arrays["mean"],
                scale=arrays["scale"],
                n_samples=int(arrays["n_samples"]),
                regularization=None if np.isnan(regularization) else regularization,
                arrays={name.removeprefix("own_"): arrays[name] for name in own},
            )

    def take(
        self,
        *,
        classes: Labels,
        mean: npt.NDArray[np.float64],
        scale: npt.NDArray[np.float64],
        n_samples: int,
        regularization: float | None,
        arrays: dict[str, npt.NDArray[Any]],
    ) -> Classifier:
        """Take what was fitted elsewhere; `arrays` are those of the kind, as `fit` makes them."""
        self.classes_, self.mean_, self.scale_ = classes, mean, scale
        self.n_samples_, self.regularization_, self._arrays = n_samples, regularization, arrays
        return self


def require_classes(y: Labels, *, least: int = 2) -> None:
    """Raise AnalysisError unless there are two classes, each of `least` rows."""
    classes, counts = np.unique(y, return_counts=True)
    if len(classes) < 2:
        only = f"only '{classes[0]}'" if len(classes) else "none"
        raise AnalysisError(
            f"A classifier needs two classes at least. There is {only}. "
            "Label more pictures, or name another field or file of labels."
        )
    if (counts < least).any():
        single = classes[counts < least]
        more = f" and {len(single) - 1} more have" if len(single) > 1 else " has"
        raise AnalysisError(
            f"The class '{single[0]}'{more} one picture only: nothing can be learned and tested of it. Add "
            "pictures, or leave the class out."
        )


def draw_rows(y: npt.NDArray[Any], n_rows: int, random_state: int) -> npt.NDArray[np.int64]:
    """Return a stratified sample of rows in order, at least three per class; all rows if there are no more."""
    if len(y) <= n_rows:
        return np.arange(len(y))
    draw = np.random.default_rng(random_state)
    chosen = []
    for own in locations_of(np.unique(y, return_inverse=True)[1]):
        n = min(len(own), max(_FOLDS, round(len(own) * n_rows / len(y))))
        chosen.append(draw.choice(own, n, replace=False))
    return np.sort(np.concatenate(chosen))


def _blocks(X: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
    """Yield blocks of rows."""
    for start in range(0, len(X), _BLOCK_ROWS):
        yield X[start : start + _BLOCK_ROWS]


def _folds(y: Labels, own: npt.NDArray[np.int64]) -> list[tuple[Any, Any]]:
    """Return training and test rows for cross-validation, groups whole; none where there are too few."""
    from sklearn.model_selection import StratifiedGroupKFold

    n_folds = min(_FOLDS, len(np.unique(own)), np.unique(y, return_counts=True)[1].max())
    folds: list[tuple[Any, Any]] = []
    if n_folds < 2:
        return folds
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        for train, test in StratifiedGroupKFold(n_folds).split(own, y, own):
            known = test[np.isin(y[test], y[train])]  # a class that is one group only cannot be learned here
            if len(known) and len(np.unique(y[train])) > 1:
                folds.append((train, known))
    return folds


def _loss(fold: tuple[Any, Any, Any], Z: Features, y: Labels, regularization: float) -> float:
    """Return the sum of the log losses of a fold's test rows."""
    from sklearn.metrics import log_loss

    one, train, test = fold
    found = one.set_params(C=regularization).fit(Z[train], y[train]).predict_proba(Z[test])
    return float(log_loss(y[test], found, labels=one.classes_)) * len(test)


def linear_arrays(fitted: Any) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays of a linear classifier of scikit-learn; of two classes it keeps one only."""
    coefficients, intercepts = fitted.coef_, fitted.intercept_
    if len(coefficients) == 1:
        coefficients = np.concatenate([-coefficients, coefficients]) / 2
        intercepts = np.concatenate([-intercepts, intercepts]) / 2
    return {"coefficients": coefficients, "intercepts": intercepts}


def _one_by_one(scores: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return normalised probabilities of one-vs-rest classifiers."""
    each = 1 / (1 + np.exp(-np.clip(scores.astype(np.float64), -500, 500)))
    shares: npt.NDArray[np.float64] = each / np.maximum(each.sum(axis=1, keepdims=True), 1e-300)
    return shares


def _softmax(scores: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    scores = scores.astype(np.float64)
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    shares: npt.NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return shares
