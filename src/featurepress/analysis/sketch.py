"""The covariance of rows times a few directions: what a PCA of very many features needs of each pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from featurepress.analysis.moments import require_finite

if TYPE_CHECKING:
    import numpy.typing as npt

    Matrix = npt.NDArray[np.float64]

OVERSAMPLING = 32  # directions more than components: they cost a quarter of the time and save a pass or two
MOST_PASSES = 8
_SETTLED = 2e-4  # the passes end when the explained variance changes by less than this share

_BLOCK_BYTES = 32 * 1024**2


@dataclass
class Sketch:
    """Count, mean, total variance and scatter of some rows, the last in a few directions only.

    Attributes
    ----------
    directions : array (n_features, n_directions) float32
        Orthonormal columns.
    n_samples : int
        How many rows.
    mean : array (n_features,) float64
        Their mean.
    product : array (n_features, n_directions) float64
        The scatter matrix times `directions`.
    total : float
        The trace of the scatter matrix.

    Notes
    -----
    A row costs 2 n_features n_directions multiplications and additions, in single precision; sums over blocks of
    rows are in double precision. Memory: 8 n_features n_directions bytes, and 32 MB of rows.
    """

    directions: npt.NDArray[np.float32]
    n_samples: int
    mean: Matrix
    product: Matrix
    total: float = 0.0

    @classmethod
    def empty(cls, directions: npt.NDArray[np.float32]) -> Sketch:
        """Return that of no rows."""
        return cls(directions, 0, np.zeros(len(directions)), np.zeros(directions.shape))

    def add(self, X: npt.NDArray[Any]) -> Sketch:
        """Add rows: array (n_samples, n_features) float32, finite; AnalysisError if some are no numbers."""
        n_rows = max(256, _BLOCK_BYTES // (4 * len(self.mean)))
        for start in range(0, len(X), n_rows):
            block = np.asarray(X[start : start + n_rows], np.float32)
            mean = block.mean(axis=0, dtype=np.float64)
            require_finite(mean, block)
            centred = block - mean.astype(np.float32)
            rest = centred.mean(axis=0, dtype=np.float64)  # what rounding the mean to single precision has left
            mean += rest
            product = (centred.T @ (centred @ self.directions)).astype(np.float64)
            product -= len(block) * np.outer(rest, rest @ self.directions)
            total = float(np.einsum("ij,ij->i", centred, centred).sum(dtype=np.float64)) - len(block) * rest @ rest
            self._join(len(block), mean, product, total)
        return self

    def merge(self, other: Sketch) -> Sketch:
        """Add the rows of another sketch in the same directions."""
        if other.n_samples:
            self._join(other.n_samples, other.mean, other.product, other.total)
        return self

    def _join(self, n_samples: int, mean: Matrix, product: Matrix, total: float) -> None:
        """Add what is about another mean; see `Moments`."""
        apart, n_all = mean - self.mean, self.n_samples + n_samples
        weight = self.n_samples * n_samples / n_all
        self.product += product
        self.product += weight * np.outer(apart, apart @ self.directions)
        self.total += total + weight * float(apart @ apart)
        self.mean = self.mean + apart * (n_samples / n_all)
        self.n_samples = n_all


@dataclass(frozen=True)
class Leading:
    """The leading eigenvectors of a covariance matrix.

    Attributes
    ----------
    n_samples : int
        Rows that were seen.
    mean : array (n_features,) float64
        Their mean.
    vectors : array (n_features, n_components) float64
        Orthonormal columns, the one of the largest variance first.
    variances : array (n_components,) float64
        Along each.
    total : float
        The sum of all variances, of the directions that were left out too.
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

    Parameters
    ----------
    n_features : int
        Numbers a row.
    n_components : int
        How many are wanted.
    one_pass : callable
        Gives the `Sketch` of all rows for some directions.
    random_state : int
        Seed of the first directions.

    Notes
    -----
    Subspace iteration: each pass multiplies the directions by the covariance matrix, as two half steps of the first
    reference do, and estimate the spectrum as in the second. It ends when the sum of the leading variances has
    settled to 2e-4 of itself, or after 8 passes; mostly after 3.

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
        if abs(explained - before) <= _SETTLED * explained:
            break
        before = explained
        directions = np.linalg.qr(sketch.product)[0].astype(np.float32)
    return found


def _eigenvectors(sketch: Sketch, n_components: int) -> Leading:
    """Return the eigenvectors of the Nyström approximation of a sketch."""
    from scipy.linalg import cholesky, solve_triangular

    directions, n_free = sketch.directions.astype(np.float64), max(1, sketch.n_samples - 1)
    product = sketch.product / n_free
    # Shifted, so that rounding leaves the small matrix positive; the shift is taken off the variances again.
    shift = float(np.linalg.norm(product)) * np.finfo(np.float32).eps or 1.0
    shifted = product + shift * directions
    small = directions.T @ shifted
    root = solve_triangular(cholesky((small + small.T) / 2), shifted.T, trans="T").T
    vectors, values, _ = np.linalg.svd(root, full_matrices=False)
    variances = np.maximum(values**2 - shift, 0.0)
    kept = slice(n_components)
    return Leading(sketch.n_samples, sketch.mean, vectors[:, kept], variances[kept], sketch.total / n_free)
