"""Convert decoded samples of any depth, with or without transparency, to 8-bit RGB over white, upright."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from PIL import Image

from featurepress.images import header

if TYPE_CHECKING:
    import numpy.typing as npt

    from featurepress.specs import Pixels

Rows = Callable[[int, int], Any]
"""Return the rows from start to stop of an image: (rows, W, 3) uint8, or (rows, W, 1) for grey."""

_STRIP_PIXELS = 1 << 20  # converted at a time, so that intermediate arrays are small


def assemble(width: int, height: int, rows: Rows) -> Pixels:
    """Build an image (H, W, 3) from its rows, strip by strip."""
    pixels = np.empty((height, width, 3), np.uint8)
    for start, stop in _strips(width, height):
        pixels[start:stop] = rows(start, stop)  # a single channel is broadcast to three
    return pixels


def _strips(width: int, height: int) -> Iterator[tuple[int, int]]:
    step = max(1, _STRIP_PIXELS // width)
    for start in range(0, height, step):
        yield start, min(height, start + step)


def sample_rows(samples: npt.NDArray[Any], tags: header.Tags) -> Rows:
    """Return the rows of (H, W, C) samples in OpenCV's order: grey, BGR or BGRA."""
    if samples.dtype.kind == "u" and samples.dtype.itemsize <= 2:
        low, high = 0.0, float(np.iinfo(samples.dtype).max)
    else:
        strips = (samples[start:stop] for start, stop in _strips(samples.shape[1], samples.shape[0]))
        low, high = header.tiff_range(tags) or _value_range(strips)
    if tags.get(header.TIFF_PHOTOMETRIC, (1,))[0] == 0:  # low values are white
        low, high = high, low
    extra = tags.get(header.TIFF_EXTRA_SAMPLES, (2,))[0]  # 0 unknown, 1 premultiplied alpha, 2 plain alpha
    channels = samples.shape[2]

    def rows(start: int, stop: int) -> Any:
        strip = samples[start:stop]
        if channels < 4 or extra == 0:
            return _scale(strip[:, :, 2::-1] if channels > 2 else strip[:, :, :1], low, high)
        unit = (strip.astype(np.float64) - low) / (high - low)
        colour, alpha = unit[:, :, 2::-1], unit[:, :, 3:4]
        return _scale((colour if extra == 1 else colour * alpha) + (1.0 - alpha), 0.0, 1.0)

    return rows


def pillow_rows(image: Image.Image, grey_bits: int, tags: header.Tags) -> Rows:
    """Return the rows of a loaded Pillow image; `grey_bits` is the depth of a grey PNG."""

    def strip(start: int, stop: int) -> Image.Image:
        is_whole = start == 0 and stop == image.height
        return image if is_whole else image.crop((0, start, image.width, stop))

    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _deep_grey_rows(image, strip, tags)
    transparency = image.info.get("transparency")
    # A tRNS chunk has samples as stored; Pillow compares them with samples that it has widened to 8 bits.
    if image.mode == "L" and isinstance(transparency, int) and image.format == "PNG":
        image.info["transparency"] = (transparency & (2**grey_bits - 1)) * 255 // (2**grey_bits - 1)
    elif image.mode == "RGB" and isinstance(transparency, tuple):
        image.info["transparency"] = tuple(value & 255 for value in transparency)
    is_transparent = image.has_transparency_data

    def rows(start: int, stop: int) -> Any:
        part = strip(start, stop)
        if is_transparent:
            # Pillow cannot convert La to RGBA directly.
            part = (part.convert("LA") if part.mode == "La" else part).convert("RGBA")
            paper = Image.new("RGB", part.size, "white")
            paper.paste(part, mask=part)
            part = paper
        return np.asarray(part if part.mode == "RGB" else part.convert("RGB"))

    return rows


def _deep_grey_rows(image: Image.Image, strip: Callable[[int, int], Image.Image], tags: header.Tags) -> Rows:
    bits = tags.get(header.TIFF_BITS, (16,))[0]
    # Pillow reads 32 unsigned bits into a signed number.
    is_unsigned = image.mode == "I" and bits == 32 and tags.get(header.TIFF_SAMPLE_FORMAT, (1,))[0] == 1
    transparency = image.info.get("transparency")

    def samples(start: int, stop: int) -> npt.NDArray[Any]:
        part = np.asarray(strip(start, stop))
        return part.view(np.uint32) if is_unsigned else part

    low, high = 0.0, 4095.0 if bits == 12 else 65535.0
    # Pillow has scaled the integers of a PPM to 16 bits.
    if not image.mode.startswith("I;16") and (image.format, image.mode) != ("PPM", "I"):
        low, high = header.tiff_range(tags) or _value_range(samples(*part) for part in _strips(*image.size))
    # For more than 8 bits, Pillow ignores that low values are white.
    if tags.get(header.TIFF_PHOTOMETRIC, (1,))[0] == 0:
        low, high = high, low

    def rows(start: int, stop: int) -> Any:
        part = samples(start, stop)
        grey = _scale(part, low, high)
        if isinstance(transparency, int):
            grey[part == transparency] = 255
        return grey[:, :, None]

    return rows


def _value_range(strips: Iterable[npt.NDArray[Any]]) -> tuple[float, float]:
    """Return the range of samples for which none is stated: the smallest usual one, else their own."""
    low, high = np.inf, -np.inf
    for strip in strips:
        finite = strip[np.isfinite(strip)]
        if finite.size:
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    if low >= 0:
        for usual in (1.0, 255.0, 65535.0):
            if high <= usual:
                return 0.0, usual
    return (low, high) if low < high else (low, low + 1.0)


def _scale(samples: npt.NDArray[Any], low: float, high: float) -> Pixels:
    """Map low..high to 0..255, rounded and clipped; `low` may be the larger one."""
    if samples.dtype.kind == "u" and samples.dtype.itemsize == 2 and (low, high) == (0.0, 65535.0):
        # round(x / 257) in integers, equal for all 65,536 values.
        return ((samples.astype(np.uint32) * 255 + 32895) >> 16).astype(np.uint8)
    with np.errstate(all="ignore"):  # overflowing values are clipped
        unit = (samples.astype(np.float64) - low) / (high - low)
        return (np.clip(np.nan_to_num(unit, nan=0.0), 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)


def orientation_of(image: Image.Image) -> int:
    """Return the EXIF orientation of a Pillow image, 1 to 8; 1 if it has none."""
    try:
        orientation = image.getexif().get(0x0112, 1)
    except Exception:  # noqa: BLE001  # on bad EXIF Pillow raises many kinds of errors, and the pixels are valid
        return 1
    return orientation if isinstance(orientation, int) else 1


# Of an image that is transposed before for 5 and 7.
_TURNS: dict[int, tuple[Callable[[Any, int], Any], int]] = {
    2: (cv2.flip, 1),
    3: (cv2.flip, -1),
    4: (cv2.flip, 0),
    6: (cv2.rotate, cv2.ROTATE_90_CLOCKWISE),
    7: (cv2.flip, -1),
    8: (cv2.rotate, cv2.ROTATE_90_COUNTERCLOCKWISE),
}


def turn_upright(pixels: Pixels, orientation: int) -> Pixels:
    """Turn an image (H, W, 3) upright by its EXIF orientation, 1 to 8 (CIPA DC-008, section 4.6.2); contiguous."""
    turned: Any = cv2.transpose(pixels) if orientation in (5, 7) else pixels
    if orientation in _TURNS:
        function, argument = _TURNS[orientation]
        turned = function(turned, argument)
    return turned  # type: ignore[no-any-return]
