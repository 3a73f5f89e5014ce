"""Decode the bytes of one image to RGB pixels, or say in one line why that is not possible.

OpenCV decodes what is plain and frequent (8-bit JPEG, PNG without transparency, simple WebP), and colours of 16
bits, because Pillow drops their low byte. Pillow decodes the rest, and everything that OpenCV fails on.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import os
import struct
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import cv2
import numpy as np
from PIL import Image, ImageFile

from featurepress.errors import ImageError
from featurepress.images import header
from featurepress.images.colour import assemble, orientation_of, pillow_rows, sample_rows, turn_upright

if TYPE_CHECKING:
    from featurepress.specs import Pixels

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

MAX_PIXELS = 178_956_970
"""Default for the maximum number of pixels of an image: Pillow's own limit against decompression bombs."""

LARGE_PIXELS = 16_000_000
"""Images of more pixels are decoded one at a time on a machine: each takes 100 MB or more."""

# The workers keep every core busy with one image each; threads inside a decoder would compete with them.
cv2.setNumThreads(1)
# ImageError describes what is wrong with an image; OpenCV's log lines name no file.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

_Reader = tuple[Callable[[IO[bytes], str], ImageFile.ImageFile], Callable[[bytes], bool | str] | None]

# Orientation is read here: OpenCV misses some of the places that Pillow reads.
_OPENCV_RGB = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
_JPEG_SIGNATURE, _JPEG_END = header.JPEG_SIGNATURE, header.JPEG_END

# Pillow's readers that may be used, in the order in which they are tried; TGA last, as it has no signature.
# Left out: those that start programs (EPS), need handlers (BUFR, GRIB, HDF5, WMF), open others unchecked (ICNS,
# IPTC), unpack without a limit (FITS), or have no signature and guess (SPIDER, IMT, MCIDAS).
_FORMATS = (
    "JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "AVIF", "DIB", "ICO", "CUR", "JPEG2000", "DDS", "MSP",
    "PCX", "PSD", "QOI", "SGI", "SUN", "XBM", "XPM", "TGA",
)  # fmt: skip
_MODULES = {"WEBP": "WebP", "DIB": "Bmp", "JPEG2000": "Jpeg2K"}  # the others are the name capitalized


def decode(data: bytes | memoryview, *, max_pixels: int = MAX_PIXELS) -> Pixels:
    """Decode the first frame of an image to RGB.

    Parameters
    ----------
    data : bytes or memoryview
        The whole file.
    max_pixels : int
        Maximum number of pixels (width times height). Larger images are refused from the header, before memory
        is allocated.

    Returns
    -------
    ndarray of shape (H, W, 3), uint8
        RGB, 0 to 255, C-contiguous, writable, turned upright by EXIF (or, without EXIF, XMP).

    Raises
    ------
    ImageError
        Stage ``decode``, for any invalid data, and if memory does not suffice.

    Notes
    -----
    *Transparency* (alpha, tRNS, palette) is composited over white. *CMYK* and *LAB* become RGB as in Pillow.
    *16 bits* are scaled by 1/257 with rounding, fewer bits by their own full scale. Of an animation the first
    frame is decoded, of a TIFF the first page, of an icon the largest image.

    *Floats, signed integers and integers above 16 bits* are scaled linearly from a range to 0..255, rounded and
    clipped; NaN is black. The range is that of TIFF's SMinSampleValue and SMaxSampleValue; without these, the
    first of 0..1, 0..255 and 0..65535 that includes every finite sample of the image; else the smallest to the
    largest finite sample.

    A JPEG takes 2 microseconds in addition to OpenCV's decoding. Memory: 3 bytes per pixel for the result, 3
    more while the image is turned, 4 more in Pillow. Images above `LARGE_PIXELS` wait for each other.
    """
    if not isinstance(data, bytes):
        data = bytes(data)
    try:
        if data.startswith(_JPEG_SIGNATURE) and (found := header.jpeg_header(data)) is not None:
            width, height, plain, orientation, scan = found
            if not 0 < width * height <= max_pixels:
                _check_size(width, height, max_pixels)
            # The thumbnail inside EXIF has an end marker too: only one after the scan header counts.
            if plain and orientation and (data.endswith(_JPEG_END) or data.rfind(_JPEG_END, scan) > 0):
                image = _decode_opencv(data, width, height)
                if image is not None:
                    return image if orientation == 1 else turn_upright(image, orientation)
        return _decode_others(data, max_pixels)
    except ImageError:
        raise
    except MemoryError as error:
        raise ImageError("decode", "not enough memory to decode it") from error
    except Exception as error:
        # On bad data Pillow's readers raise OSError, SyntaxError, struct.error and a dozen more.
        raise ImageError("decode", _reason(data, error)) from error


def _decode_opencv(data: bytes, width: int, height: int) -> Pixels | None:
    """Decode with OpenCV; None if it fails or finds another size than the header's."""
    try:
        with _lock_if_large(width, height):
            image = cv2.imdecode(np.frombuffer(data, np.uint8), _OPENCV_RGB)
    except cv2.error:
        return None
    if image is None or image.shape != (height, width, 3):
        return None
    return image  # type: ignore[return-value]  # the stubs leave the dtype open


def _decode_others(data: bytes, max_pixels: int) -> Pixels:
    if not data:
        raise ImageError("decode", "zero bytes")
    if data.startswith(header.PNG_SIGNATURE) and (png := header.png_header(data)) is not None:
        return _decode_png(data, png, max_pixels)
    if data.startswith(header.TIFF_SIGNATURES):
        return _decode_tiff(data, max_pixels)
    if (size := header.webp_size(data)) is not None:
        # Pillow allocates the memory for a WebP when it opens the file.
        _check_size(*size, max_pixels)
        if data[12:16] == b"VP8 " and (image := _decode_opencv(data, *size)) is not None:
            return image
    elif data.startswith(header.ICO_SIGNATURE):
        # Pillow decodes an icon when it opens the file.
        for width, height in header.ico_sizes(data):
            _check_size(max(1, width), max(1, height), max_pixels)
    return _decode_pillow(data, max_pixels)


def _decode_png(data: bytes, png: header.PngHeader, max_pixels: int) -> Pixels:
    _check_size(png.width, png.height, max_pixels)
    if png.complete and not png.animated:
        if png.depth <= 8 and png.colour in (0, 2, 3) and not (png.transparent or png.oriented):
            image = _decode_opencv(data, png.width, png.height)
            if image is not None:
                return image
        if png.depth == 16 and png.colour != 0:
            image = _decode_deep(data, png.width, png.height, {})
            if image is not None and png.oriented:
                with _quiet_pillow():
                    return turn_upright(image, orientation_of(_open(data)))
            if image is not None:
                return image
    return _decode_pillow(data, max_pixels, grey_bits=png.depth)


def _decode_tiff(data: bytes, max_pixels: int) -> Pixels:
    tags = header.tiff_tags(data)
    if header.TIFF_WIDTH not in tags or header.TIFF_HEIGHT not in tags:
        return _decode_pillow(data, max_pixels)
    width, height = int(tags[header.TIFF_WIDTH][0]), int(tags[header.TIFF_HEIGHT][0])
    _check_size(width, height, max_pixels)
    tile = [int(tags.get(tag, (1,))[0]) for tag in (header.TIFF_TILE_WIDTH, header.TIFF_TILE_HEIGHT)]
    # A tile may be larger than the image, and often is for small images: 1024 x 1024 is always allowed.
    _check_size(max(1, tile[0]), max(1, tile[1]), max(max_pixels, 1 << 20))
    photometric = tags.get(header.TIFF_PHOTOMETRIC, (0,))[0]
    # OpenCV confuses samples that are stored plane by plane.
    known = photometric in (0, 1, 2) and tags.get(header.TIFF_PLANAR, (1,))[0] == 1
    if known and photometric == 2 and max(tags.get(header.TIFF_BITS, (1,))) > 8:
        image = _decode_deep(data, width, height, tags)
        if image is not None:
            return image
    try:
        return _decode_pillow(data, max_pixels, tags=tags)
    except (ImageError, OSError, SyntaxError, ValueError):
        # Only OpenCV supports many depths, 64 bits and some layouts of the file.
        image = _decode_deep(data, width, height, tags) if known else None
        if image is None:
            raise
        return image


def _decode_deep(data: bytes, width: int, height: int, tags: header.Tags) -> Pixels | None:
    """Decode with OpenCV at full depth, then scale; None if it fails or finds another size."""
    with _lock_if_large(width, height):
        try:
            deep = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        except cv2.error:
            return None
        # OpenCV has already turned a TIFF, so its sides may be exchanged.
        if deep is None or sorted(deep.shape[:2]) != sorted((height, width)):
            return None
        samples = deep if deep.ndim == 3 else deep[:, :, None]
        return assemble(samples.shape[1], samples.shape[0], sample_rows(samples, tags))


def _decode_pillow(data: bytes, max_pixels: int, *, grey_bits: int = 8, tags: header.Tags | None = None) -> Pixels:
    with _quiet_pillow():
        try:
            return _load_pillow(data, max_pixels, grey_bits, tags or {})
        except Image.DecompressionBombError:
            # Pillow's limit is below ours, which is always checked before memory is allocated.
            with _pillow_limit_lifted():
                return _load_pillow(data, max_pixels, grey_bits, tags or {})


def _load_pillow(data: bytes, max_pixels: int, grey_bits: int, tags: header.Tags) -> Pixels:
    image = _open(data)
    _check_size(*image.size, max_pixels)
    with _lock_if_large(*image.size):
        image.load()
        pixels = assemble(*image.size, pillow_rows(image, grey_bits, tags))
        # Pillow turns a TIFF while it loads it.
        orientation = 1 if image.format == "TIFF" else orientation_of(image)
        image.close()
        return turn_upright(pixels, orientation)


def _open(data: bytes) -> ImageFile.ImageFile:
    """Find the reader for `data` as Image.open does, among the allowed ones and without Pillow's limit."""
    prefix, first_error = data[:16], None
    for name, (factory, accept) in _readers().items():
        if accept is not None and accept(prefix) is not True:
            continue
        try:
            return factory(io.BytesIO(data), "")
        except (SyntaxError, IndexError, TypeError, struct.error) as error:
            # Another format may share the signature, as TGA and CUR do.
            if accept is not None and first_error is None:
                early = "truncated" if header.ends_early(data) else "damaged"
                first_error = ImageError("decode", f"{early} {name}: {_one_line(error)}")
    if (kind := header.unsupported_kind(data)) is not None:
        raise ImageError("decode", f"{kind} is not supported; convert it to JPEG or PNG")
    raise first_error or ImageError("decode", "not an image")


@functools.cache
def _readers() -> dict[str, _Reader]:
    readers: dict[str, Any] = {}
    for name in _FORMATS:
        module = importlib.import_module(f"PIL.{_MODULES.get(name, name.capitalize())}ImagePlugin")
        readers[name] = Image.OPEN[name]
        if name == "JPEG":
            # The registered reader searches for further images (MPO); only the first one is used.
            readers[name] = (module.JpegImageFile, Image.OPEN[name][1])
    return readers


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height <= 0:
        raise ImageError("decode", f"no pixels: {width} x {height}")
    if width * height > max_pixels:
        reason = f"too many pixels: {width} x {height}, above the limit of {max_pixels} (--max-pixels)"
        raise ImageError("decode", reason)


def _one_line(error: BaseException) -> str:
    if isinstance(error.__cause__ or error, (struct.error, IndexError, TypeError, KeyError, EOFError)):
        return "its header is incomplete"  # the error's text is about Python
    text = " ".join(str(error).split())[:200] or type(error).__name__
    return text.replace("not identified by this driver", "its header gives no size or kind of pixels")


def _reason(data: bytes, error: Exception) -> str:
    text = _one_line(error).replace("image file is truncated", "image data ends early")
    early = header.ends_early(data) or any(word in text for word in ("early", "runcated", "not enough"))
    return f"{'truncated' if early else 'damaged'}: {text}"


_quiet_lock = threading.Lock()
_quiet_depth = 0


@contextlib.contextmanager
def _quiet_pillow() -> Iterator[None]:
    # warnings.catch_warnings is not thread-safe: it restores filters that another thread has just replaced.
    # Therefore one filter, only for Pillow's modules, is active while any thread is in this block.
    global _quiet_depth  # noqa: PLW0603
    with _quiet_lock:
        _quiet_depth += 1
        warnings.filterwarnings("ignore", module=r"PIL\.")
        entry = warnings.filters[0]
    try:
        yield
    finally:
        with _quiet_lock:
            _quiet_depth -= 1
            if _quiet_depth == 0:
                with contextlib.suppress(ValueError):  # other code has restored the filters meanwhile
                    warnings.filters.remove(entry)  # type: ignore[attr-defined]


_limit_lock = threading.Lock()


@contextlib.contextmanager
def _pillow_limit_lifted() -> Iterator[None]:
    with _limit_lock:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


_large_lock = threading.Lock()


def _lock_if_large(width: int, height: int) -> contextlib.AbstractContextManager[None]:
    return one_at_a_time() if width * height > LARGE_PIXELS else contextlib.nullcontext()


@contextlib.contextmanager
def one_at_a_time() -> Iterator[None]:
    """Hold the lock of this user on this machine for large images.

    It is on a file: the kernel releases it when the process dies. It also excludes threads of one process, because
    each opens the file separately.
    """
    descriptor = None
    if fcntl is not None:
        path = Path(tempfile.gettempdir()) / f"featurepress-decode-{os.getuid()}.lock"
        with contextlib.suppress(OSError):  # the file cannot be created: lock only the threads of this process
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    if descriptor is None:
        with _large_lock:
            yield
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        # Closing is not enough: a child that was forked meanwhile has the file open too.
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)
