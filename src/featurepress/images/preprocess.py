"""Resize pixels to the model's input, by a `PreprocessSpec`.

Mean, scale and channel order are applied in the graph of the backbone. There they cost nothing, and 8-bit pixels
are a quarter of the memory traffic.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from PIL import Image

from featurepress.images.area import resize_by_area_or_linear
from featurepress.images.resample import Span, resample
from featurepress.specs import PreprocessSpec

if TYPE_CHECKING:
    import numpy.typing as npt

    from featurepress.specs import Pixels

_PILLOW_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "hamming": Image.Resampling.HAMMING,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}

_MAX_PIXELS = 2**24  # 48 MB of RGB
_MAX_EXACT = 512


def preprocess(pixels: Pixels, spec: PreprocessSpec, out: npt.NDArray[Any]) -> None:
    """Resize one image into a batch.

    Parameters
    ----------
    pixels : array (H, W, 3) uint8
        RGB.
    spec : PreprocessSpec
        Size, interpolation and cropping.
    out : array (spec.height, spec.width, 3) of spec.dtype
        Contiguous; receives levels from 0 to 255, for bicubic in float32 also outside of this range.
    """
    down, across = spans(pixels.shape[0], pixels.shape[1], spec)
    if pixels.shape[:2] == (down.of, across.of):
        out[:] = pixels[down.start : down.stop, across.start : across.stop]
    elif spec.interpolation == "area-or-linear":
        resize_by_area_or_linear(pixels, out)
    elif spec.dtype == "uint8":
        out[:] = _resized_by_pillow(pixels, spec.interpolation, down, across)
    elif _fits_cv2(pixels, spec):
        _resize_by_cv2(pixels, out)
    else:
        resample(pixels, spec.interpolation, antialias=spec.antialias, spans=(down, across), out=out)


def spans(height: int, width: int, spec: PreprocessSpec) -> tuple[Span, Span]:
    """Return the parts of the resized height and width that are kept.

    For ``crop`` the shorter side is resized to `shortest_edge`, the longer one in proportion, rounded down. Then
    the middle is kept; if the rest is odd, one pixel more is cut at the end. The image processors of transformers
    do the same.
    """
    if spec.shortest_edge is None:
        return Span(0, spec.height, spec.height), Span(0, spec.width, spec.width)
    short, long = sorted((height, width))
    long = int(spec.shortest_edge * long / short)
    tall, wide = (spec.shortest_edge, long) if height <= width else (long, spec.shortest_edge)
    top, left = (tall - spec.height) // 2, (wide - spec.width) // 2
    return Span(top, top + spec.height, tall), Span(left, left + spec.width, wide)


def _resized_by_pillow(pixels: Pixels, filter_name: str, down: Span, across: Span) -> Any:
    """Resize with Pillow and crop."""
    image, method = Image.fromarray(pixels), _PILLOW_FILTERS[filter_name]
    if down.of * across.of <= _MAX_PIXELS:
        whole = np.asarray(image.resize((across.of, down.of), method))
        return whole[down.start : down.stop, across.start : across.stop]
    # Of a long strip only the middle is resized: one or two levels off, with bicubic 20 at the edges.
    height, width = pixels.shape[0] / down.of, pixels.shape[1] / across.of
    box = (across.start * width, down.start * height, across.stop * width, down.stop * height)
    return np.asarray(image.resize((across.stop - across.start, down.stop - down.start), method, box=box))


def _fits_cv2(pixels: Pixels, spec: PreprocessSpec) -> bool:
    """Whether OpenCV supports it: linear interpolation of the whole image, of at most 32,767 pixels a side."""
    is_plain = spec.interpolation == "bilinear" and not spec.antialias and spec.resize == "stretch"
    return is_plain and max(pixels.shape) < 2**15


def _resize_by_cv2(pixels: Pixels, out: npt.NDArray[np.float32]) -> None:
    """Interpolate linearly as TensorFlow does; the error of cv2.resize is 2e-5 of a level per source pixel."""
    levels = pixels.astype(np.float32)
    (height, width), (to_height, to_width) = pixels.shape[:2], out.shape[:2]
    if max(height, width) <= _MAX_EXACT:
        cv2.resize(levels, (to_width, to_height), dst=out, interpolation=cv2.INTER_LINEAR)
    else:
        maps = _linear_maps(height, width, to_height, to_width)
        cv2.remap(levels, maps[0], maps[1], cv2.INTER_LINEAR, dst=out, borderMode=cv2.BORDER_REPLICATE)


@functools.lru_cache(maxsize=32)
def _linear_maps(height: int, width: int, to_height: int, to_width: int) -> list[Any]:
    """Return the positions between source pixels, in TensorFlow's float32 arithmetic."""
    half = np.float32(0.5)
    down = (np.arange(to_height, dtype=np.float32) + half) * np.float32(height / to_height) - half
    across = (np.arange(to_width, dtype=np.float32) + half) * np.float32(width / to_width) - half
    return list(np.meshgrid(across, down))
