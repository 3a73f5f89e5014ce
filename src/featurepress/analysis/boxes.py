"""Boxes in an image with their labels, from the probabilities of the cells of a grid or of overlapping tiles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    Probabilities = npt.NDArray[np.float32]  # (..., n_classes)
    Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels; the last two exclusive

BACKGROUND = "background"  # the label of regions without an object; never predicted
TILE_SHARES = (0.5, 0.35, 0.25)  # sides of the tiles, as shares of the shorter side of the image
_MAX_OVERLAP = 0.3  # of the smaller of two boxes with a label; above it the less probable one is dropped
_MAX_TILES_ALONG = 100  # non-overlapping tiles of a size along a side; tiles of a narrow image are wider


class Region(NamedTuple):
    """A labelled box in pixels of the image; right and bottom are exclusive."""

    label: str
    probability: float
    left: int
    top: int
    right: int
    bottom: int
    kind: str


def cells_of(
    probabilities: Probabilities, labels: npt.NDArray[np.str_], threshold: float, boxes: Sequence[Any]
) -> list[Region]:
    """Merge neighbouring cells with the same label into boxes.

    `probabilities` of the cells: array (height, width, n_classes); cells without one of at least `threshold` are
    ignored. `boxes` has the box of each cell in pixels, row by row.
    """
    from scipy import ndimage

    best, highest = probabilities.argmax(axis=2), probabilities.max(axis=2)
    regions = []
    for label in np.unique(best[(highest >= threshold) & (labels[best] != BACKGROUND)]):
        groups, _ = ndimage.label((best == label) & (highest >= threshold))  # neighbours share a side
        for number, (down, across) in enumerate(ndimage.find_objects(groups), 1):
            left, top, _, _ = boxes[down.start][across.start]
            _, _, right, bottom = boxes[down.stop - 1][across.stop - 1]
            probability = float(highest[groups == number].max())
            regions.append(Region(str(labels[label]), probability, left, top, right, bottom, "cell"))
    return regions


def tile_boxes(width: int, height: int) -> list[Box]:
    """Return overlapping squares that cover an image: for each of `TILE_SHARES`, at most half a side apart.

    On an image much longer than wide, tiles are longer too, so that their number stays below 4,000.
    """
    boxes = []
    squares = [max(1, round(min(width, height) * share)) for share in TILE_SHARES]
    for square in dict.fromkeys(squares):
        across, down = (max(square, math.ceil(size / _MAX_TILES_ALONG)) for size in (width, height))
        lows = [
            np.linspace(0, size - side, math.ceil(2 * (size - side) / side) + 1).round().astype(int).tolist()
            for size, side in ((height, down), (width, across))
        ]
        boxes += [(x, y, x + across, y + down) for y in lows[0] for x in lows[1]]
    return list(dict.fromkeys(boxes))


def strongest(regions: Sequence[Region]) -> list[Region]:
    """Drop boxes that overlap with a more probable box of the same label."""
    kept: list[Region] = []
    for region in sorted(regions, key=by_probability):
        if all(region.label != better.label or _overlap(region, better) <= _MAX_OVERLAP for better in kept):
            kept.append(region)
    return kept


def by_probability(region: Region) -> tuple[Any, ...]:
    """Return a key that sorts regions by their probability, highest first."""
    return (-region.probability, *region[2:])


def _overlap(a: Region, b: Region) -> float:
    """Return the area that two boxes share, as a share of the smaller one."""
    width = min(a.right, b.right) - max(a.left, b.left)
    height = min(a.bottom, b.bottom) - max(a.top, b.top)
    areas = [(box.right - box.left) * (box.bottom - box.top) for box in (a, b)]
    return max(0, width) * max(0, height) / min(areas)
