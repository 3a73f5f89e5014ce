"""Simple properties of an image that need no model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    from featurepress.specs import Pixels

_LEVELS = 4  # of each of red, green and blue


def colour_histogram(pixels: Pixels) -> npt.NDArray[np.float32]:
    """Return the square roots of the shares of 4 x 4 x 4 colours: array (64,) float32, of length 1.

    The distance of two such histograms is the Hellinger distance, in which rare colours count.
    """
    bins = (pixels.reshape(-1, 3) // (256 // _LEVELS)).astype(np.int64)
    counts = np.bincount(bins @ np.array([_LEVELS**2, _LEVELS, 1]), minlength=_LEVELS**3)
    histogram: npt.NDArray[np.float32] = np.sqrt(counts / max(1, counts.sum())).astype(np.float32)
    return histogram
