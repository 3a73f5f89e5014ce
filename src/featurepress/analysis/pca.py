"""Principal component analysis: exact from moments, or randomized from passes over the rows."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from featurepress.analysis.moments import Moments
from featurepress.analysis.sketch import Leading, Sketch, leading
from featurepress.errors import AnalysisError
from featurepress.settings import ReductionSettings

if TYPE_CHECKING:
    import numpy.typing as npt

    from featurepress.specs import Features

    Matrix = npt.NDArray[np.float64]

# With more features, the eigenvectors of the covariance matrix take more than a minute on two cores, and the matrix
# takes 128 MB; a few passes over the rows take less.
MOST_EXACT_FEATURES = 4_000

_NO_VARIANCE = 1e-6  # of the largest standard deviation: single precision resolves no smaller one


@dataclass
class PCA:
    """Principal component analysis of features.

    Parameters
    ----------
    n_components : int, optional
        Number of components; 128 by default, or the possible maximum if that is less.
    variance : float, optional
        Instead of a number: as many as explain this share of the variance, between 0 and 1. Needs the exact solver.
    whiten : bool
        Whether each component is divided by its standard deviation, so that all have variance 1.
    solver : str
        ``exact``: from the covariance of all features. ``randomized``: from passes over the rows, in a few
        directions. ``auto``: exact up to 4,000 features, randomized above.
    random_state : int
        Seed of the randomized solver.

    Attributes
    ----------
    components_ : array (n_components, n_features) float64
        Orthonormal rows, the one of the largest variance first; the largest element of each, by size, is positive.
    explained_variance_ : array (n_components,) float64
        Variance along each, divided by ``n_samples - 1``.
    explained_variance_ratio_ : array (n_components,) float64
        The same as shares of the variance of all features.
    mean_ : array (n_features,) float64
        Mean of the rows.
    n_samples_ : int
        Number of rows it was fitted to.
    solver_ : str
        The solver that was used.

    Examples
    --------
    >>> import numpy as np
    >>> X = np.random.default_rng(0).standard_normal((50, 8)).astype(np.float32)
    >>> PCA(n_components=2).fit(X).transform(X).shape
    (50, 2)
    """

    n_components: int | None = None
    variance: float | None = None
    whiten: bool = False
    solver: str = "auto"
    random_state: int = 0

    DEFAULT_COMPONENTS = 128

    def __post_init__(self) -> None:
        ReductionSettings(self.n_components, self.variance, self.whiten, self.solver, self.random_state)  # checks

    def solver_for(self, n_features: int) -> str:
        """Return the solver for this number of features."""
        if self.solver != "auto":
            return self.solver
        return "exact" if n_features <= MOST_EXACT_FEATURES or self.variance is not None else "randomized"

    # -- fitting ---------------------------------------------------------------------------------------------

    def fit(self, X: npt.NDArray[Any]) -> PCA:
        """Fit to an array (n_samples, n_features) in memory."""
        if self.solver_for(X.shape[1]) == "exact":
            return self.fit_moments(Moments.empty(X.shape[1]).add(X))
        return self.fit_passes(len(X), X.shape[1], lambda directions: Sketch.empty(directions).add(X))

    def fit_moments(self, moments: Moments) -> PCA:
        """Fit to the moments of all rows: the exact solver.

        Notes
        -----
        Time: about 10 n_features³ operations for all components: half a second for 1,280 features on two cores.
        """
        from scipy.linalg import eigh

        n_possible = self._require_rows(moments.n_samples, moments.n_features)
        n_kept = n_possible if self.variance is not None else self._n_requested(n_possible)
        covariance, last = moments.covariance, moments.n_features - 1
        total = float(np.trace(covariance))
        values, vectors = eigh(covariance, lower=False, overwrite_a=True, subset_by_index=(last + 1 - n_kept, last))
        variances, vectors = np.maximum(values[::-1], 0.0), vectors[:, ::-1]
        if self.variance is not None:
            reached = np.cumsum(variances) / total if total else np.ones(n_kept)
            n_kept = min(n_kept, int(np.searchsorted(reached, self.variance - 1e-12)) + 1)
        found = Leading(moments.n_samples, moments.mean, vectors[:, :n_kept], variances[:n_kept], total)
        return self._take(found, "exact")

    def fit_passes(
        self, n_samples: int, n_features: int, one_pass: Callable[[npt.NDArray[np.float32]], Sketch]
    ) -> PCA:
        """Fit by passes over all rows: the randomized solver; see `featurepress.analysis.sketch.leading`."""
        n_kept = self._n_requested(self._require_rows(n_samples, n_features))
        return self._take(leading(n_features, n_kept, one_pass, random_state=self.random_state), "randomized")

    def _require_rows(self, n_samples: int, n_features: int) -> int:
        """Return the maximum number of components."""
        if n_samples < 2:
            raise AnalysisError(f"A PCA needs at least 2 images. Got {n_samples}.")
        return min(n_samples - 1, n_features)

    def _n_requested(self, n_possible: int) -> int:
        if self.n_components is None:
            return min(self.DEFAULT_COMPONENTS, n_possible)
        if self.n_components > n_possible:
            raise AnalysisError(
                f"The 'n_components' setting must be at most {n_possible} here: less than the number of images, "
                f"and not more than the number of features. Got {self.n_components}."
            )
        return self.n_components

    def _take(self, found: Leading, solver: str) -> PCA:
        largest = np.abs(found.vectors).argmax(axis=0)
        signs = np.sign(found.vectors[largest, np.arange(found.vectors.shape[1])])
        self.components_ = np.ascontiguousarray((found.vectors * signs).T)
        self.explained_variance_ = found.variances
        self.explained_variance_ratio_ = found.variances / (found.total or 1.0)
        self.mean_, self.n_samples_, self.solver_ = found.mean, found.n_samples, solver
        return self

    # -- use -------------------------------------------------------------------------------------------------

    def transform(self, X: npt.NDArray[Any]) -> Features:
        """Project rows, array (n_samples, n_features): array (n_samples, n_components) float32."""
        self._require_fitted()
        if X.ndim != 2 or X.shape[1] != len(self.mean_):
            raise AnalysisError(
                f"The PCA was fitted to {len(self.mean_):,} features per row. Got an array of shape {X.shape}."
            )
        centred = np.asarray(X, np.float32) - self.mean_.astype(np.float32)
        projected: Features = centred @ (self.components_ / self._scale[:, None]).astype(np.float32).T
        return projected

    def inverse_transform(self, X: npt.NDArray[Any]) -> Features:
        """Return rows from their projection: array (n_samples, n_features) float32."""
        self._require_fitted()
        rows: Matrix = np.asarray(X, np.float64) * self._scale @ self.components_ + self.mean_
        return rows.astype(np.float32)

    def _require_fitted(self) -> None:
        if not hasattr(self, "components_"):
            raise AnalysisError("This PCA has not been fitted: call fit first.")

    @property
    def _scale(self) -> Matrix:
        """Divisor of each component: its standard deviation, or 1, also where that is only rounding noise."""
        if not self.whiten:
            return np.ones(len(self.components_))
        deviations = np.sqrt(self.explained_variance_)
        scale: Matrix = np.where(deviations > _NO_VARIANCE * deviations[0], deviations, 1.0)
        return scale

    # -- storage ---------------------------------------------------------------------------------------------

    def to_bytes(self) -> bytes:
        """Return a fitted PCA for storage: NumPy's format, no pickle."""
        self._require_fitted()
        buffer = io.BytesIO()
        np.savez(
            buffer,
            components=self.components_,
            explained_variance=self.explained_variance_,
            explained_variance_ratio=self.explained_variance_ratio_,
            mean=self.mean_,
            n_samples=np.int64(self.n_samples_),
            whiten=np.bool_(self.whiten),
            solver=np.str_(self.solver_),
        )
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> PCA:
        """Return a PCA from the bytes of `to_bytes`."""
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            pca = cls(n_components=len(arrays["components"]), whiten=bool(arrays["whiten"]))
            pca.components_, pca.mean_ = arrays["components"], arrays["mean"]
            pca.explained_variance_ = arrays["explained_variance"]
            pca.explained_variance_ratio_ = arrays["explained_variance_ratio"]
            pca.n_samples_, pca.solver_ = int(arrays["n_samples"]), str(arrays["solver"])
        return pca
