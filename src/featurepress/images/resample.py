"""Resize in float32 as TensorFlow does: bilinear, bicubic and area, with and without antialias.

A target pixel is a weighted mean of source pixels along the height, then along the width. The weights depend only
on the sizes and are computed once per size.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    from featurepress.specs import Pixels

    Array = npt.NDArray[np.float64]

_CUBIC = -0.5  # Keys' coefficient
_CUBIC_STEPS = 1024  # per pixel, in TensorFlow's table of weights for plain bicubic interpolation


class Span(NamedTuple):
    """The pixels from `start` to `stop` of a side of length `of` after resizing."""

    start: int
    stop: int
    of: int


class Taps(NamedTuple):
    """The source pixels of the target pixels along one side: arrays (n_taps, n_target)."""

    sources: npt.NDArray[np.intp]  # indices
    weights: npt.NDArray[np.float32]  # those of a target pixel add up to 1


def resample(
    pixels: Pixels, kernel: str, *, antialias: bool, spans: tuple[Span, Span], out: npt.NDArray[np.float32]
) -> None:
    """Resize one image as ``tf.image.resize(pixels, size, kernel, antialias=antialias)`` does, and crop it.

    Parameters
    ----------
    pixels : array (H, W, 3) uint8
        Any channels.
    kernel : str
        ``bilinear``, ``bicubic`` or ``area``.
    antialias : bool
        Widen the kernel by the factor by which the image shrinks; ignored for ``area``.
    spans : pair of Span
        The parts of the height and of the width to compute.
    out : array (height, width, 3) float32
        Receives levels from 0 to 255; for bicubic also outside of this range.

    Notes
    -----
    Agrees with TensorFlow 2.21 to 0.003 of a level. The time is proportional to the number of taps, for bilinear
    with antialias ``2 * H / height + 1``: 1.7 ms from 500x375 to 96x96, on one core.
    """
    down = _taps(pixels.shape[0], spans[0], kernel, antialias)
    across = _taps(pixels.shape[1], spans[1], kernel, antialias)
    out[:] = _combine(_combine(pixels, down, 0), across, 1)


def _combine(pixels: npt.NDArray[Any], taps: Taps, axis: int) -> npt.NDArray[np.float32]:
    """Compute the target pixels along one axis."""
    shape = [1, 1, 1]
    shape[axis] = -1
    total: npt.NDArray[np.float32] | None = None
    for sources, weights in zip(*taps, strict=True):
        share = np.multiply(pixels.take(sources, axis), weights.reshape(shape), dtype=np.float32)
        total = share if total is None else np.add(total, share, out=total)
    assert total is not None
    return total


@functools.lru_cache(maxsize=256)
def _taps(n: int, span: Span, kernel: str, antialias: bool) -> Taps:
    """Return the taps from a side of `n` pixels to a span."""
    targets, step = np.arange(span.start, span.stop), n / span.of
    if kernel == "area":
        return _area_taps(targets, step, n)
    if kernel == "bicubic" and not antialias:
        return _table_taps(targets, step, n)
    widen = max(step, 1.0) if antialias else 1.0
    radius, weigh = _KERNELS[kernel]
    positions = (targets + 0.5) * step
    first = np.ceil(positions - radius * widen - 0.5).astype(np.intp)
    sources = first + np.arange(math.ceil(2 * radius * widen) + 1)[:, None]
    if not antialias:  # outside of the border, its pixel is repeated
        return _normalised(sources.clip(0, n - 1), weigh(sources + 0.5 - positions), n)
    return _normalised(sources, weigh((sources + 0.5 - positions) / widen), n)


def _area_taps(targets: npt.NDArray[np.intp], step: float, n: int) -> Taps:
    starts, ends = targets * step, (targets + 1) * step
    sources = np.floor(starts).astype(np.intp) + np.arange(math.ceil(step) + 1)[:, None]
    return _normalised(sources, np.clip(np.minimum(ends, sources + 1) - np.maximum(starts, sources), 0, None), n)


def _table_taps(targets: npt.NDArray[np.intp], step: float, n: int) -> Taps:
    """Return the taps of plain bicubic interpolation, with distances rounded as in TensorFlow's table."""
    positions = (targets.astype(np.float32) + np.float32(0.5)) * np.float32(step) - np.float32(0.5)
    below = np.floor(positions).astype(np.intp)
    fraction = np.rint((positions - below) * _CUBIC_STEPS) / _CUBIC_STEPS
    sources = below + np.arange(-1, 3)[:, None]
    return _normalised(sources, _cubic(np.arange(-1, 3)[:, None] - fraction), n)


def _normalised(sources: npt.NDArray[np.intp], weights: Array, n: int) -> Taps:
    """Remove the taps outside of the border; let the other weights add up to 1."""
    weights = np.where((sources >= 0) & (sources < n), weights, 0.0)
    weights /= weights.sum(axis=0)
    used = weights.any(axis=1)
    return Taps(sources[used].clip(0, n - 1), weights[used].astype(np.float32))


def _triangle(x: Array) -> Array:
    result: Array = np.clip(1 - np.abs(x), 0, None)
    return result


def _cubic(x: Array) -> Array:
    """Return the weights of Keys' cubic convolution (IEEE Transactions on ASSP 29, 1981)."""
    x, a = np.abs(x), _CUBIC
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


_KERNELS: dict[str, tuple[float, Callable[[Array], Array]]] = {
    "bilinear": (1.0, _triangle),
    "bicubic": (2.0, _cubic),
}
