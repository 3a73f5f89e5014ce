"""Preprocessing, compared with its rule in NumPy."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from featurepress.images import preprocess
from featurepress.images.area import _area_maps, _area_positions
from featurepress.models.catalog import EMBEDDED_V1
from featurepress.specs import PreprocessSpec
from tests.images.reference import noise

Array = npt.NDArray[Any]
SPEC = EMBEDDED_V1.preprocess


def embedded(pixels: Array, spec: PreprocessSpec = SPEC) -> Array:
    out = np.zeros((spec.height, spec.width, 3), np.uint8)
    preprocess(pixels, spec, out)
    return out


def area_weights(n_source: int, n_target: int) -> Array:
    """Return the share of each source pixel in each target pixel: (n_target, n_source)."""
    edges = np.arange(n_target + 1) * (n_source / n_target)
    weights = np.zeros((n_target, n_source))
    for target in range(n_target):
        for source in range(n_source):
            overlap = min(edges[target + 1], source + 1) - max(edges[target], source)
            weights[target, source] = max(0.0, overlap)
    normalised: Array = weights / weights.sum(axis=1, keepdims=True)
    return normalised


def linear_weights(n_source: int, n_target: int) -> Array:
    """Return the weights of linear interpolation between pixel centres: (n_target, n_source)."""
    weights = np.zeros((n_target, n_source))
    for target in range(n_target):
        position = (target + 0.5) * n_source / n_target - 0.5
        below = int(np.floor(position))
        for source, share in ((below, below + 1 - position), (below + 1, position - below)):
            weights[target, min(max(source, 0), n_source - 1)] += share
    return weights


def reference(pixels: Array, height: int, width: int) -> Array:
    """Resize by the stated rule: area where the shorter side is larger than the target, else linear."""
    weights = area_weights if min(pixels.shape[:2]) > height else linear_weights
    down, across = weights(pixels.shape[0], height), weights(pixels.shape[1], width)
    exact: Array = np.einsum("ts,sxc,ux->tuc", down, pixels.astype(np.float64), across, optimize=True)
    return np.rint(exact)


SIZES = [
    (100, 100), (97, 97), (192, 192), (500, 375), (375, 500), (97, 1000), (1000, 97), (288, 96 * 4), (131, 173),
    (96, 100), (100, 96), (95, 2000), (2000, 95), (50, 50), (1, 1), (1, 300), (300, 1), (2, 3), (96, 95), (48, 48),
    (1024, 1024), (1024, 1025), (192, 200),
]  # fmt: skip


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_the_stated_rule_within_one_level(height: int, width: int) -> None:
    pixels = noise(height, width)
    difference = np.abs(embedded(pixels) - reference(pixels, 96, 96))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.2


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_bit_equal_to_opencv(height: int, width: int) -> None:
    pixels = noise(height, width)
    how = cv2.INTER_AREA if min(height, width) > 96 else cv2.INTER_LINEAR
    expected = cv2.resize(pixels, (96, 96), interpolation=how)
    if min(height, width) <= 96 or _area_maps(height, width, 96, 96) is None:
        np.testing.assert_array_equal(embedded(pixels), expected)
        return
    # The quick way to the same mean sums in another order: a mean next to a half may round the other way.
    differences = np.abs(embedded(pixels).astype(int) - expected)
    assert differences.max() <= 1
    assert (differences > 0).mean() < 1e-3


def test_area_maps_exist_if_two_pixels_cover_every_target() -> None:
    for n in range(97, 300):
        edges = np.arange(97) * n  # of the target's pixels, in 96ths of a source pixel
        covered = -(-edges[1:] // 96) - edges[:-1] // 96
        assert (_area_positions(n, 96) is not None) == (covered.max() <= 2), n


@pytest.mark.parametrize("n", [97, 98, 100, 104, 112, 128])
def test_area_maps_have_the_weights_of_the_area(n: int) -> None:
    positions = _area_positions(n, 96)
    assert positions is not None
    first = np.floor(positions).astype(int)
    weights = np.zeros((96, n + 1))
    weights[np.arange(96), first] = 1 - (positions - first)
    weights[np.arange(96), first + 1] += positions - first
    np.testing.assert_allclose(weights[:, :n], area_weights(n, 96), atol=1e-5)


def test_area_and_linear_interpolation_differ() -> None:
    pixels = noise(200, 200)
    linear = cv2.resize(pixels, (96, 96), interpolation=cv2.INTER_LINEAR)
    assert np.abs(embedded(pixels).astype(int) - linear).mean() > 5


def test_an_image_of_the_right_size_is_copied() -> None:
    pixels = noise(96, 96)
    before = pixels.copy()
    out = embedded(pixels)
    np.testing.assert_array_equal(out, pixels)
    np.testing.assert_array_equal(pixels, before)
    assert not np.shares_memory(out, pixels)


@pytest.mark.parametrize("level", [0, 1, 127, 254, 255])
@pytest.mark.parametrize(("height", "width"), [(100, 100), (500, 375), (50, 50), (1, 1)])
def test_an_image_of_one_colour_keeps_it(height: int, width: int, level: int) -> None:
    out = embedded(np.full((height, width, 3), level, np.uint8))
    assert (out == level).all()


@pytest.mark.parametrize(("height", "width"), [(100, 100), (96, 96), (50, 50)])
def test_only_the_given_part_of_a_batch_is_written(height: int, width: int) -> None:
    batch = np.full((3, 96, 96, 3), 7, np.uint8)
    pixels = noise(height, width)
    preprocess(pixels, SPEC, batch[1])
    np.testing.assert_array_equal(batch[1], embedded(pixels))
    assert (batch[0] == 7).all()
    assert (batch[2] == 7).all()


def test_channels_and_sides_keep_their_order() -> None:
    pixels = np.zeros((200, 300, 3), np.uint8)
    pixels[:100, :, 0] = 255  # red above
    pixels[:, 150:, 2] = 255  # blue at the right
    out = embedded(pixels)
    assert (out[:48, :, 0] == 255).all()
    assert (out[48:, :, 0] == 0).all()
    assert (out[..., 1] == 0).all()
    assert (out[:, 48:, 2] == 255).all()
    assert (out[:, :48, 2] == 0).all()


def test_both_sides_are_stretched_to_any_declared_size() -> None:
    spec = PreprocessSpec(height=8, width=24)
    assert embedded(noise(100, 100), spec).shape == (8, 24, 3)
    np.testing.assert_array_equal(
        embedded(noise(16, 48), spec), np.rint(noise(16, 48).reshape(8, 2, 24, 2, 3).mean(axis=(1, 3)) + 1e-9)
    )


@pytest.mark.parametrize(("height", "width"), [(1, 100_000), (100_000, 1), (97, 40_000)])
def test_very_long_images_are_resized(height: int, width: int) -> None:
    pixels = np.full((height, width, 3), 9, np.uint8)
    assert (embedded(pixels) == 9).all()
