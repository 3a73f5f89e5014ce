"""Classifiers of features: fitted by scikit-learn; stored and applied as plain arrays.

The files do not depend on the version of scikit-learn, and most workers that predict need not import it.
"""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from featurepress.analysis.moments import require_finite, row_blocks
from featurepress.analysis.splits import locations_of
from featurepress.errors import AnalysisError
from featurepress.settings import ClassifierSettings

if TYPE_CHECKING:
    import numpy.typing as npt

    from featurepress.specs import Features

    Labels = npt.NDArray[np.str_]
    Arrays = dict[str, npt.NDArray[Any]]

REGULARIZATIONS = tuple(10.0**power for power in range(-4, 3))  # tried by cross-validation
DEFAULT_REGULARIZATION = 1.0  # scikit-learn's, for too few rows to cross-validate
CROSS_VALIDATION_ROWS = 4_000  # of the stratified sample for cross-validation
_FOLDS = 3


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
        Standardisation: each feature minus `mean_`, divided by `scale_`, its standard deviation. `scale_` is 1 for
        constant features and for knn.
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
        self._arrays: Arrays = {}

    # -- fitting ---------------------------------------------------------------------------------------------

    def fit(self, X: Features, y: Labels, groups: npt.NDArray[np.int64] | None = None) -> Classifier:
        """Fit to rows in memory: `X`, array (n_samples, n_features) float32, and their labels `y`, array of str.

        Rows of a group are never on both sides of cross-validation: near-duplicates would favour too little
        regularisation. AnalysisError if there is only one class, or features are NaN or infinite.
        """
        require_classes(y, least=1)
        mean, scale = spread(row_blocks(X))
        if self.kind == "knn":  # by cosine: the last components of a reduction must not weigh as much as the first
            scale = np.ones_like(mean)
        classes, codes = np.unique(y, return_inverse=True)
        arrays = {"classes": classes, "mean": mean, "scale": scale, "n_samples": np.array(len(y))}
        Z = self._standardise(X, mean, scale)
        if self.kind == "logistic":
            regularization = self.regularization or self.choose(Z, y, groups)
            arrays |= logistic_arrays(self._logistic(regularization).fit(Z, y), regularization)
        elif self.kind == "knn":
            arrays |= {"rows": Z, "labels": codes}
        else:
            sums = np.stack([Z[rows].sum(axis=0, dtype=np.float64) for rows in locations_of(codes)])
            squares = float(np.einsum("ij,ij", Z, Z, dtype=np.float64))
            arrays |= centroid_arrays(sums, squares, np.bincount(codes), balanced=self.balanced)
        return self.set_fitted(arrays)

    def set_fitted(self, arrays: Arrays) -> Classifier:
        """Set what was fitted: the arrays that `fit` computes, which are also those of the stored file."""
        self._arrays = arrays
        self.classes_, self.mean_, self.scale_ = arrays["classes"], arrays["mean"], arrays["scale"]
        self.n_samples_ = int(arrays["n_samples"])
        self.regularization_ = float(arrays["regularization"]) if "regularization" in arrays else None
        return self

    def _standardise(self, X: npt.NDArray[Any], mean: npt.NDArray[Any], scale: npt.NDArray[Any]) -> Features:
        """Return standardised rows; for knn, they have length 1."""
        Z: Features = np.empty(X.shape, np.float32)
        for rows, own in zip(row_blocks(X), row_blocks(Z), strict=True):
            own[:] = (rows - mean) / scale
        if self.kind == "knn":
            from sklearn.preprocessing import normalize

            normalize(Z, copy=False)
        return Z

    def choose(self, Z: Features, y: Labels, groups: npt.NDArray[np.int64] | None = None) -> float:
        """Return the regularisation with the least log loss in cross-validation, of standardised rows.

        It is 1, scikit-learn's default, if there are too few rows, or groups of them, for cross-validation.
        """
        rows = draw_rows(y, CROSS_VALIDATION_ROWS, self.random_state)
        Z, y = Z[rows], y[rows]
        own = np.arange(len(y)) if groups is None else groups[rows]
        folds = [(self._logistic(1.0, is_rough=True), *sides) for sides in _folds(y, own)]
        if not folds:
            return DEFAULT_REGULARIZATION
        losses: dict[float, float] = {}
        for regularization in REGULARIZATIONS:  # ascending: each fit starts from the one before it
            losses[regularization] = sum(_loss(fold, Z, y, regularization) for fold in folds)
            if len(losses) > 2 and losses[regularization] > 0.99 * min(list(losses.values())[:-1]):
                break  # larger values gain little, and take longest
        return min(losses, key=lambda value: losses[value])

    def _logistic(self, regularization: float, *, is_rough: bool = False) -> Any:
        """Return scikit-learn's classifier; a rough one has a warm start and a larger tolerance."""
        from sklearn.linear_model import LogisticRegression

        weights = "balanced" if self.balanced else None
        options: dict[str, Any] = {"tol": 1e-3, "warm_start": True} if is_rough else {}
        return LogisticRegression(C=regularization, class_weight=weights, max_iter=5_000, **options)

    # -- use -------------------------------------------------------------------------------------------------

    def predict_proba(self, X: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Return the probability of each class: array (n_samples, n_classes), columns as `classes_`."""
        self._require_fitted()
        if X.ndim != 2 or X.shape[1] != len(self.mean_):
            raise AnalysisError(
                f"The classifier was fitted to {len(self.mean_):,} features per row. Got an array of shape "
                f"{X.shape}."
            )
        Z, arrays = self._standardise(X, self.mean_, self.scale_), self._arrays
        if self.kind == "knn":
            return self._neighbour_shares(Z)
        if self.kind == "centroid":
            means = arrays["means"]
            distances = (means**2).sum(axis=1) - 2 * Z.astype(np.float64) @ means.T  # minus what all classes share
            return _softmax(np.log(arrays["shares"]) - distances / (2 * arrays["variance"]))
        scores = (Z @ arrays["coefficients"].T + arrays["intercepts"]).astype(np.float64)
        if "one_vs_rest" not in arrays:
            return _softmax(scores)
        each = 1 / (1 + np.exp(-np.clip(scores, -500, 500)))
        probabilities: npt.NDArray[np.float64] = each / each.sum(axis=1, keepdims=True)
        return probabilities

    def predict(self, X: npt.NDArray[Any]) -> Labels:
        """Return the most probable class of each row: array (n_samples,) of str."""
        best = self.predict_proba(X).argmax(axis=1)
        predicted: Labels = self.classes_[best]
        return predicted

    def _neighbour_shares(self, Z: Features) -> npt.NDArray[np.float64]:
        from sklearn.neighbors import KNeighborsClassifier

        rows, labels = self._arrays["rows"], self._arrays["labels"]
        neighbours = KNeighborsClassifier(min(self.n_neighbors, len(rows)), algorithm="brute").fit(rows, labels)
        shares: npt.NDArray[np.float64] = neighbours.predict_proba(Z)
        if self.balanced:
            shares = shares / np.bincount(labels)
            shares /= shares.sum(axis=1, keepdims=True)
        return shares

    def _require_fitted(self) -> None:
        if not self._arrays:
            raise AnalysisError("This classifier has not been fitted: call fit first.")

    # -- storage ---------------------------------------------------------------------------------------------

    def to_bytes(self) -> bytes:
        """Return a fitted classifier for storage: NumPy's format, no pickle."""
        self._require_fitted()
        buffer = io.BytesIO()
        arrays: dict[str, Any] = {"settings": np.str_(json.dumps(asdict(self))), **self._arrays}
        np.savez(buffer, **arrays)
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> Classifier:
        """Return a classifier from the bytes of `to_bytes`."""
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        return cls(**json.loads(str(arrays.pop("settings")))).set_fitted(arrays)


def require_classes(y: Labels, *, least: int = 2) -> None:
    """Raise AnalysisError unless there are two classes, each of `least` rows."""
    classes, counts = np.unique(y, return_counts=True)
    if len(classes) < 2:
        existing = f"only '{classes[0]}'" if len(classes) else "none"
        raise AnalysisError(
            f"A classifier needs at least two classes. There is {existing}. Label more images, or name another "
            "field or file of labels."
        )
    if (counts < least).any():
        single = classes[counts < least]
        more = f" and {len(single) - 1} more have" if len(single) > 1 else " has"
        raise AnalysisError(
            f"The class '{single[0]}'{more} only one image; training and testing need two. Add images, or leave "
            "the class out."
        )


def draw_rows(y: npt.NDArray[Any], n_rows: int, random_state: int) -> npt.NDArray[np.int64]:
    """Return a stratified sample of rows in order, at least three per class; all rows if there are not more."""
    if len(y) <= n_rows:
        return np.arange(len(y))
    rng = np.random.default_rng(random_state)
    chosen = []
    for rows in locations_of(np.unique(y, return_inverse=True)[1]):
        n = min(len(rows), max(_FOLDS, round(len(rows) * n_rows / len(y))))
        chosen.append(rng.choice(rows, n, replace=False))
    return np.sort(np.concatenate(chosen))


def spread(blocks: Iterable[Features]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return mean and standard deviation of each feature, of rows in blocks; for a constant feature, 1."""
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler()
    for X in blocks:
        require_finite(X.mean(axis=0, dtype=np.float64), X)
        scaler.partial_fit(X)
    return scaler.mean_, scaler.scale_


def logistic_arrays(fitted: Any, regularization: float) -> Arrays:
    """Return the arrays of a linear classifier of scikit-learn, which stores only one row for two classes."""
    coefficients, intercepts = fitted.coef_, fitted.intercept_
    if len(coefficients) == 1:
        coefficients = np.concatenate([-coefficients, coefficients]) / 2
        intercepts = np.concatenate([-intercepts, intercepts]) / 2
    return {"coefficients": coefficients, "intercepts": intercepts, "regularization": np.array(regularization)}


def centroid_arrays(sums: npt.NDArray[Any], squares: float, counts: npt.NDArray[Any], *, balanced: bool) -> Arrays:
    """Return the arrays of a centroid classifier.

    `sums` of the standardised rows of each class: array (n_classes, n_features); `squares`: sum of the squares of
    all their features; `counts`: rows of each class; `balanced`: whether all classes have the same weight.
    """
    n_classes, n_features = sums.shape
    means = sums / counts[:, None]
    within = squares - float((counts[:, None] * means**2).sum())
    variance = within / (n_features * max(1, counts.sum() - n_classes))
    shares = np.full(n_classes, 1 / n_classes) if balanced else counts / counts.sum()
    return {"means": means, "variance": np.array(max(variance, 1e-12)), "shares": shares}


def _softmax(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    probabilities: npt.NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return probabilities


def _folds(y: Labels, own: npt.NDArray[np.int64]) -> list[tuple[Any, Any]]:
    """Return training and test rows for cross-validation, groups whole; none if there are too few."""
    from sklearn.model_selection import StratifiedGroupKFold

    n_folds = min(_FOLDS, len(np.unique(own)), np.unique(y, return_counts=True)[1].max())
    folds: list[tuple[Any, Any]] = []
    if n_folds < 2:
        return folds
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        for train, test in StratifiedGroupKFold(n_folds).split(own, y, own):
            known = test[np.isin(y[test], y[train])]  # a class with a single group cannot be learned here
            if len(known) and len(np.unique(y[train])) > 1:
                folds.append((train, known))
    return folds


def _loss(fold: tuple[Any, Any, Any], Z: Features, y: Labels, regularization: float) -> float:
    """Return the sum of the log losses of a fold's test rows."""
    from sklearn.metrics import log_loss

    classifier, train, test = fold
    probabilities = classifier.set_params(C=regularization).fit(Z[train], y[train]).predict_proba(Z[test])
    return float(log_loss(y[test], probabilities, labels=classifier.classes_)) * len(test)
