"""What can be seen of a picture at a glance: a thumbnail, and its colours."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    from featurepress.specs import Pixels

_LEVELS = 4  # of each of red, green and blue
_QUALITY = 85


def thumbnail(pixels: Pixels, *, side_px: int = 160) -> bytes:
    """Return a small copy of a picture.

    Parameters
    ----------
    pixels : array (H, W, 3) uint8
        RGB.
    side_px : int
        Its longer side becomes this, if it is longer; 160 by default, twice what a report shows it at.

    Returns
    -------
    bytes
        JPEG.
    """
    height, width = pixels.shape[:2]
    share = min(1.0, side_px / max(height, width))
    size = max(1, round(width * share)), max(1, round(height * share))
    small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA) if share < 1 else pixels
    return cv2.imencode(".jpg", small[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])[1].tobytes()


def colour_histogram(pixels: Pixels) -> npt.NDArray[np.float32]:
    """Return the square roots of the shares of 4 x 4 x 4 colours: array (64,) float32, of length 1.

    Square roots, so that distances are Hellinger's, in which rare colours count.
    """
    bins = (pixels.reshape(-1, 3) // (256 // _LEVELS)).astype(np.int64)
    counts = np.bincount(bins @ np.array([_LEVELS**2, _LEVELS, 1]), minlength=_LEVELS**3)
    found: npt.NDArray[np.float32] = np.sqrt(counts / max(1, counts.sum())).astype(np.float32)
    return found
