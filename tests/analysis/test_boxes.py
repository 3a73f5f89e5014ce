"""Boxes of cells and tiles: they cover the image, and merge or exclude each other by label."""

from __future__ import annotations

import numpy as np
import pytest

from featurepress.analysis.boxes import BACKGROUND, Region, cells_of, strongest, tile_boxes

LABELS = np.array(["apple", BACKGROUND, "pear"])


def test_neighbouring_cells_of_a_label_are_one_box() -> None:
    shares = np.full((3, 3, 3), 0.1)
    shares[0, 0, 0], shares[0, 1, 0], shares[1, 1, 0] = 0.6, 0.9, 0.7  # apples around a corner
    shares[2, 2, 0] = 0.8  # touches only its corner
    shares[1, 0, 2], shares[2, 0, 2], shares[0, 2, 1] = 0.8, 0.4, 1.0  # a pear, one too weak, background
    boxes = [[(x, y, x + 10, y + 10) for x in (0, 10, 20)] for y in (0, 10, 20)]
    result = cells_of(shares, LABELS, 0.5, boxes)
    assert sorted(result) == [
        Region("apple", 0.8, 20, 20, 30, 30, "cell"),
        Region("apple", 0.9, 0, 0, 20, 20, "cell"),
        Region("pear", 0.8, 0, 10, 10, 20, "cell"),
    ]
    assert cells_of(shares, LABELS, 0.95, boxes) == []


@pytest.mark.parametrize(("width", "height"), [(384, 384), (640, 480), (100, 1000), (7, 5), (1, 1)])
def test_tiles_overlap_and_cover_the_image(width: int, height: int) -> None:
    boxes = tile_boxes(width, height)
    for side in {right - left for left, _, right, _ in boxes}:
        seen = np.zeros((height, width), int)
        for left, top, right, bottom in boxes:
            assert 0 <= left < right <= width
            assert 0 <= top < bottom <= height
            assert right - left == bottom - top
            if right - left == side:
                seen[top:bottom, left:right] += 1
        assert seen.min() >= 1
        if min(width, height) > 100:
            assert seen[height // 2, width // 2] >= 3


@pytest.mark.parametrize(("width", "height"), [(16_000, 16), (10, 65_000), (3, 4)])
def test_narrow_images_have_fewer_than_4000_tiles(width: int, height: int) -> None:
    boxes = tile_boxes(width, height)
    assert len(boxes) == len(set(boxes)) < 4_000
    seen = np.zeros((height, width), bool)
    for left, top, right, bottom in boxes:
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        seen[top:bottom, left:right] = True
    assert seen.all()


def test_the_most_probable_of_overlapping_boxes_is_kept() -> None:
    boxes = [
        Region("apple", 0.8, 0, 0, 10, 10, "tile"),
        Region("apple", 0.9, 2, 0, 12, 10, "tile"),
        Region("pear", 0.7, 2, 0, 12, 10, "tile"),
        Region("apple", 0.75, 9, 0, 19, 10, "tile"),
    ]
    assert strongest(boxes) == [boxes[1], boxes[3], boxes[2]]
