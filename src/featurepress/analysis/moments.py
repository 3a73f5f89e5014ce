"""Count, mean and scatter of rows, summed in any order and on any machine, for an exact PCA."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from featurepress.errors import AnalysisError

if TYPE_CHECKING:
    import numpy.typing as npt

    Matrix = npt.NDArray[np.float64]

_BLOCK_BYTES = 32 * 1024**2  # of rows in double precision: larger blocks are no faster


@dataclass
class Moments:
    """Count, mean and scatter matrix of some rows.

    `scatter` is the sum over all rows x of (x - mean)(x - mean)ᵀ, column-major for BLAS. Only its upper triangle is
    filled; the rest is 0.

    Notes
    -----
    Time: n_features² multiplications and additions per row, in double precision: 20,000 rows of 1,280 features take
    about a second on two cores. Memory: 8 n_features² bytes, and 32 MB of rows.

    References
    ----------
    Chan, Golub, LeVeque: Updating formulae and a pairwise algorithm for computing sample variances. COMPSTAT 1982.
    """

    n_samples: int
    mean: Matrix
    scatter: Matrix

    @classmethod
    def empty(cls, n_features: int) -> Moments:
        """Return the moments of no rows."""
        return cls(0, np.zeros(n_features), np.zeros((n_features, n_features), order="F"))

    @property
    def n_features(self) -> int:
        """Number of features per row."""
        return len(self.mean)

    @property
    def covariance(self) -> Matrix:
        """Covariance, divided by ``n_samples - 1``: array (n_features, n_features) float64, upper triangle."""
        covariance: Matrix = self.scatter / max(1, self.n_samples - 1)
        return covariance

    def add(self, X: npt.NDArray[Any]) -> Moments:
        """Add rows: array (n_samples, n_features); AnalysisError if some features are NaN or infinite."""
        from scipy.linalg.blas import dsyrk

        for rows in row_blocks(X):
            block = np.asarray(rows, np.float64)
            mean = block.mean(axis=0)
            require_finite(mean, rows)
            # Both are column-major for BLAS: the transposed block, and the scatter, which is added to in place.
            self.scatter = dsyrk(1.0, (block - mean).T, beta=1.0, c=self.scatter, overwrite_c=1)
            self._shift(len(block), mean)
        return self

    def merge(self, other: Moments) -> Moments:
        """Add the rows of other moments."""
        if other.n_samples:
            self.scatter += other.scatter
            self._shift(other.n_samples, other.mean)
        return self

    def _shift(self, n_samples: int, mean: Matrix) -> None:
        """Correct the sum of two scatter matrices, each about its own mean, to the common mean."""
        from scipy.linalg.blas import dsyr

        total = self.n_samples + n_samples
        apart = mean - self.mean
        if self.n_samples:
            self.scatter = dsyr(self.n_samples * n_samples / total, apart, a=self.scatter, overwrite_a=1)
        self.mean = self.mean + apart * (n_samples / total)
        self.n_samples = total

    def to_arrays(self) -> dict[str, Any]:
        """Return the moments as arrays for storage; of the scatter, the upper triangle row by row."""
        packed = self.scatter[np.triu_indices(self.n_features)]
        return {"n_samples": np.int64(self.n_samples), "mean": self.mean, "scatter": packed}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> Moments:
        """Return moments from the arrays of `to_arrays`."""
        moments = cls.empty(len(arrays["mean"]))
        moments.n_samples, moments.mean = int(arrays["n_samples"]), arrays["mean"]
        moments.scatter[np.triu_indices(moments.n_features)] = arrays["scatter"]
        return moments


def row_blocks(X: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
    """Yield rows in blocks of at most 32 MB in double precision, or of 256 rows."""
    n_rows = max(256, _BLOCK_BYTES // (8 * max(1, X.shape[1])))
    for start in range(0, len(X), n_rows):
        yield X[start : start + n_rows]


def require_finite(mean: npt.NDArray[Any], X: npt.NDArray[Any]) -> None:
    """Raise AnalysisError if the mean shows that some rows are NaN or infinite."""
    if not np.isfinite(mean).all():
        bad = ~np.isfinite(X).all(axis=1)
        raise AnalysisError(
            f"{bad.sum()} of {len(X)} rows have features that are NaN or infinite. Embed those images again, or "
            "drop the rows."
        )
