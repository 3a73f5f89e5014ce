"""Small copies of images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2

if TYPE_CHECKING:
    from featurepress.specs import Pixels

_QUALITY = 85


def thumbnail(pixels: Pixels, *, side_px: int = 160) -> bytes:
    """Return a small copy of an image as JPEG.

    Parameters
    ----------
    pixels : array (H, W, 3) uint8
        RGB.
    side_px : int
        Maximum length of the longer side; 160 by default, twice the size in a report.
    """
    height, width = pixels.shape[:2]
    share = min(1.0, side_px / max(height, width))
    size = max(1, round(width * share)), max(1, round(height * share))
    small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA) if share < 1 else pixels
    return cv2.imencode(".jpg", small[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])[1].tobytes()
