"""The covariance of rows times a few directions, summed in passes, for a PCA of very many features."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from featurepress.analysis.moments import require_finite

if TYPE_CHECKING:
    import numpy.typing as npt

    Matrix = npt.NDArray[np.float64]

OVERSAMPLING = 32  # additional directions: they cost a quarter of the time and save one or two passes
MOST_PASSES = 8
_CONVERGED = 2e-4  # the passes end when the explained variance changes by less than this share

_BLOCK_BYTES = 32 * 1024**2


@dataclass
class Sketch:
    """Count and mean of some rows, and their scatter matrix in a few directions.

    `directions` are orthonormal columns: array (n_features, n_directions) float32. `product` is the scatter matrix
    times `directions`, `total` the trace of the scatter matrix.

    Notes
    -----
    Time: 2 n_features n_directions multiplications and additions per row, in single precision; sums over blocks of
    rows are in double precision. Memory: 8 n_features n_directions bytes, and 32 MB of rows.
    """

    directions: npt.NDArray[np.float32]
    n_samples: int
    mean: Matrix
    product: Matrix
    total: float = 0.0

    @classmethod
    def empty(cls, directions: npt.NDArray[np.float32]) -> Sketch:
        """Return the sketch of no rows."""
        return cls(directions, 0, np.zeros(len(directions)), np.zeros(directions.shape))

    def add(self, X: npt.NDArray[Any]) -> Sketch:
        """Add rows: array (n_samples, n_features) float32; AnalysisError if features are NaN or infinite."""
        n_rows = max(256, _BLOCK_BYTES // (4 * len(self.mean)))
        for start in range(0, len(X), n_rows):
            block = np.asarray(X[start : start + n_rows], np.float32)
            mean = block.mean(axis=0, dtype=np.float64)
            require_finite(mean, block)
            centred = block - mean.astype(np.float32)
            rest = centred.mean(
                axis=0, dtype=np.float64
            )  # the error of the mean, which was rounded to single precision
            mean += rest
            product = (centred.T @ (centred @ self.directions)).astype(np.float64)
            product -= len(block) * np.outer(rest, rest @ self.directions)
            total = float(np.einsum("ij,ij->i", centred, centred).sum(dtype=np.float64)) - len(block) * rest @ rest
            self.merge(Sketch(self.directions, len(block), mean, product, total))
        return self

    def merge(self, other: Sketch) -> Sketch:
        """Add the rows of another sketch in the same directions, about another mean; see `Moments`."""
        if other.n_samples:
            apart, n_all = other.mean - self.mean, self.n_samples + other.n_samples
            weight = self.n_samples * other.n_samples / n_all
            self.product += other.product
            self.product += weight * np.outer(apart, apart @ self.directions)
            self.total += other.total + weight * float(apart @ apart)
            self.mean = self.mean + apart * (other.n_samples / n_all)
            self.n_samples = n_all
        return self


@dataclass(frozen=True)
class Leading:
    """The leading eigenvectors of a covariance matrix.

    Attributes
    ----------
    n_samples, mean
        Number of rows, and their mean: array (n_features,) float64.
    vectors : array (n_features, n_components) float64
        Orthonormal columns, the one of the largest variance first.
    variances : array (n_components,) float64
        Variance along each of them.
    total : float
        The sum of all variances, including the other directions.
    """

    n_samples: int
    mean: Matrix
    vectors: Matrix
    variances: Matrix
    total: float


def leading(
    n_features: int, n_components: int, one_pass: Callable[[npt.NDArray[np.float32]], Sketch], *, random_state: int
) -> Leading:
    """Find the leading eigenvectors by passes over all rows.

    `one_pass` returns the `Sketch` of all rows for some directions; `random_state` is the seed of the first ones.

    Notes
    -----
    Subspace iteration: each pass multiplies the directions by the covariance matrix, like two half steps of the
    first reference, and estimates the spectrum as in the second. It ends when the sum of the leading variances
    changes by less than a share of 2e-4, mostly after 3 passes, or after 8.

    References
    ----------
    Halko, Martinsson, Shkolnisky, Tygert: An algorithm for the principal component analysis of large data sets.
    SIAM Journal on Scientific Computing 33, 2011.
    Tropp, Yurtsever, Udell, Cevher: Fixed-rank approximation of a positive-semidefinite matrix from streaming data.
    NIPS 2017, algorithm 3.
    """
    n_directions = min(n_features, n_components + OVERSAMPLING)
    drawn = np.random.default_rng(random_state).standard_normal((n_features, n_directions))
    directions = np.linalg.qr(drawn)[0].astype(np.float32)
    before = 0.0
    for _ in range(MOST_PASSES):
        sketch = one_pass(directions)
        found = _eigenvectors(sketch, n_components)
        explained = float(found.variances.sum())
        if abs(explained - before) <= _CONVERGED * explained:
            break
        before = explained
        directions = np.linalg.qr(sketch.product)[0].astype(np.float32)
    return found


def _eigenvectors(sketch: Sketch, n_components: int) -> Leading:
    """Return the eigenvectors of the Nyström approximation of a sketch."""
    from scipy.linalg import cholesky, solve_triangular

    directions, n_free = sketch.directions.astype(np.float64), max(1, sketch.n_samples - 1)
    product = sketch.product / n_free
    # Shifted, so that the small matrix stays positive definite despite rounding; the variances are corrected below.
    shift = float(np.linalg.norm(product)) * np.finfo(np.float32).eps or 1.0
    shifted = product + shift * directions
    small = directions.T @ shifted
    root = solve_triangular(cholesky((small + small.T) / 2), shifted.T, trans="T").T
    vectors, values, _ = np.linalg.svd(root, full_matrices=False)
    variances = np.maximum(values**2 - shift, 0.0)
    kept = slice(n_components)
    return Leading(sketch.n_samples, sketch.mean, vectors[:, kept], variances[kept], sketch.total / n_free)
