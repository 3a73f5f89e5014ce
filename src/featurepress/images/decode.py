"""Turn the bytes of one image into RGB pixels, or say in one line why that is impossible.

OpenCV decodes what is plain and frequent (8-bit JPEG, PNG without transparency, simple WebP) and colours of
16 bits, because Pillow drops their low byte. Pillow decodes the rest, and whatever OpenCV gives up on.
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
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile

from featurepress.errors import ImageError
from featurepress.images import header

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

MAX_PIXELS = 178_956_970
"""Most pixels of an image, by default: where Pillow's own protection against bombs refuses."""

LARGE_PIXELS = 16_000_000
"""Images of more pixels are decoded one at a time on a machine: each takes 100 MB and more while it lasts."""

# The workers keep every core busy with an image each; threads inside a decoder would only fight with them.
cv2.setNumThreads(1)
# ImageError describes what is wrong with an image; OpenCV's own lines name no file.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

Pixels = npt.NDArray[np.uint8]
_Tags = dict[int, tuple[float, ...]]
_Rows = Callable[[int, int], Pixels]
_Reader = tuple[Callable[[IO[bytes], str], ImageFile.ImageFile], Callable[[bytes], bool | str] | None]

# IGNORE_ORIENTATION because the orientation is read here: OpenCV does not see all that Pillow sees.
_OPENCV_RGB = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
_JPEG_SIGNATURE, _JPEG_END = header.JPEG_SIGNATURE, header.JPEG_END
_STRIP_PIXELS = 1 << 20  # converted at a time, so that intermediate arrays stay small beside the image

# Pillow's readers that may be used, in the order in which they are asked; TGA last, as it has no signature.
# Left out: those that start programs (EPS), need handlers (BUFR, GRIB, HDF5, WMF), open others unseen (ICNS,
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
        Most pixels (width times height) that are accepted; more is refused from the header, before memory is
        taken.

    Returns
    -------
    ndarray of shape (H, W, 3), uint8
        RGB, 0 to 255, C-contiguous, writable, turned upright as EXIF (or, without EXIF, XMP) says.

    Raises
    ------
    ImageError
        Stage ``decode``, whatever is wrong with the data; memory that does not suffice included.

    Notes
    -----
    *Transparency* (alpha, tRNS, palette) is composited over white. *CMYK* and *LAB* become RGB as in Pillow.
    *16 bits* are scaled by 1/257 with rounding, fewer by their own full scale. Animations give their first
    frame, TIFF its first page, icons their largest picture.

    *Floats, signed integers and those above 16 bits* are scaled linearly from a range to 0..255, rounded
    and clipped; NaN is black. The range is what TIFF states in SMinSampleValue and SMaxSampleValue; without
    these, the first of 0..1, 0..255 and 0..65535 that holds every finite sample of the image; else the
    smallest to the largest finite sample.

    A JPEG costs 2 microseconds beyond OpenCV's decoding. Memory: the 3 bytes a pixel that are returned, 3
    more while the picture is turned, 4 more in Pillow. Images above `LARGE_PIXELS` wait for one another.
    """
    if not isinstance(data, bytes):
        data = bytes(data)
    try:
        if data.startswith(_JPEG_SIGNATURE) and (found := header.jpeg_header(data)) is not None:
            width, height, plain, orientation, scan = found
            if not 0 < width * height <= max_pixels:
                _check_size(width, height, max_pixels)
            # The thumbnail inside EXIF has an end marker too: only one behind the scan header counts.
            if plain and orientation and (data.endswith(_JPEG_END) or data.rfind(_JPEG_END, scan) > 0):
                image = _decode_opencv(data, width, height)
                if image is not None:
                    return image if orientation == 1 else _turn(image, orientation)
        return _decode_others(data, max_pixels)
    except ImageError:
        raise
    except MemoryError as error:
        raise ImageError("decode", "not enough memory to decode it") from error
    except Exception as error:
        # Pillow's readers raise whatever their code happens to raise on bad data: OSError, SyntaxError,
        # struct.error and a dozen more. No shorter list is safe.
        raise ImageError("decode", _reason(data, error)) from error


def _decode_opencv(data: bytes, width: int, height: int) -> Pixels | None:
    # None where OpenCV gives up or does not see what the header says: Pillow is asked next.
    try:
        if width * height > LARGE_PIXELS:
            with _one_at_a_time():
                image = cv2.imdecode(np.frombuffer(data, np.uint8), _OPENCV_RGB)
        else:
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
        # Pillow takes the memory for a WebP when it opens the file.
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
                    return _turn(image, _orientation(_open(data)))
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
    # A tile may be larger than the image, and small ones often are: 1024 x 1024 is always allowed.
    _check_size(max(1, tile[0]), max(1, tile[1]), max(max_pixels, 1 << 20))
    photometric = tags.get(header.TIFF_PHOTOMETRIC, (0,))[0]
    # OpenCV mixes up samples that are stored one plane after another.
    known = photometric in (0, 1, 2) and tags.get(header.TIFF_PLANAR, (1,))[0] == 1
    if known and photometric == 2 and max(tags.get(header.TIFF_BITS, (1,))) > 8:
        image = _decode_deep(data, width, height, tags)
        if image is not None:
            return image
    try:
        return _decode_pillow(data, max_pixels, tags=tags)
    except (ImageError, OSError, SyntaxError, ValueError):
        # Many depths, 64 bits and some layouts of the file are known to OpenCV only.
        image = _decode_deep(data, width, height, tags) if known else None
        if image is None:
            raise
        return image


def _decode_deep(data: bytes, width: int, height: int, tags: _Tags) -> Pixels | None:
    """Decode with OpenCV at full depth, then scale; None where OpenCV cannot or sees another size."""
    with _turn_taken(width, height):
        try:
            deep = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        except cv2.error:
            return None
        # A TIFF comes turned already, so its sides may be exchanged.
        if deep is None or sorted(deep.shape[:2]) != sorted((height, width)):
            return None
        samples = deep if deep.ndim == 3 else deep[:, :, None]
        return _assemble(samples.shape[1], samples.shape[0], _sample_rows(samples, tags))


def _sample_rows(samples: npt.NDArray[Any], tags: _Tags) -> _Rows:
    """Make RGB over white of rows of (H, W, C) samples as OpenCV orders them: grey, BGR or BGRA."""
    if samples.dtype.kind == "u" and samples.dtype.itemsize <= 2:
        low, high = 0.0, float(np.iinfo(samples.dtype).max)
    else:
        strips = (samples[start:stop] for start, stop in _strips(samples.shape[1], samples.shape[0]))
        low, high = header.tiff_range(tags) or _value_range(strips)
    if tags.get(header.TIFF_PHOTOMETRIC, (1,))[0] == 0:  # white is at the low end
        low, high = high, low
    extra = tags.get(header.TIFF_EXTRA_SAMPLES, (2,))[0]  # 0 unknown, 1 premultiplied alpha, 2 plain alpha
    channels = samples.shape[2]

    def rows(start: int, stop: int) -> Pixels:
        strip = samples[start:stop]
        if channels < 4 or extra == 0:
            return _scale(strip[:, :, 2::-1] if channels > 2 else strip[:, :, :1], low, high)
        unit = (strip.astype(np.float64) - low) / (high - low)
        colour, alpha = unit[:, :, 2::-1], unit[:, :, 3:4]
        return _scale((colour if extra == 1 else colour * alpha) + (1.0 - alpha), 0.0, 1.0)

    return rows


def _decode_pillow(data: bytes, max_pixels: int, *, grey_bits: int = 8, tags: _Tags | None = None) -> Pixels:
    with _quiet_pillow():
        try:
            return _load_pillow(data, max_pixels, grey_bits, tags or {})
        except Image.DecompressionBombError:
            # Pillow's limit is below ours, and ours has been checked or will be before memory is taken.
            with _pillow_limit_lifted():
                return _load_pillow(data, max_pixels, grey_bits, tags or {})


def _load_pillow(data: bytes, max_pixels: int, grey_bits: int, tags: _Tags) -> Pixels:
    image = _open(data)
    _check_size(*image.size, max_pixels)
    with _turn_taken(*image.size):
        image.load()
        pixels = _assemble(*image.size, _pillow_rows(image, grey_bits, tags))
        # Pillow turns a TIFF while it loads it.
        orientation = 1 if image.format == "TIFF" else _orientation(image)
        image.close()
        return _turn(pixels, orientation)


def _open(data: bytes) -> ImageFile.ImageFile:
    """Find the reader for `data` as Image.open does, among the allowed ones and without Pillow's limit."""
    prefix, first_error = data[:16], None
    for name, (factory, accept) in _readers().items():
        if accept is not None and accept(prefix) is not True:
            continue
        try:
            return factory(io.BytesIO(data), "")
        except (SyntaxError, IndexError, TypeError, struct.error) as error:
            # "Not mine after all"; another format may share the signature, as TGA and CUR do.
            if accept is not None and first_error is None:
                early = "truncated" if header.ends_early(data) else "damaged"
                first_error = ImageError("decode", f"{early} {name}: {_one_line(error)}")
    kind = header.unsupported_kind(data)
    if kind is not None:
        raise ImageError("decode", f"{kind} is not supported; convert it to JPEG or PNG")
    raise first_error or ImageError("decode", "not an image")


@functools.cache
def _readers() -> dict[str, _Reader]:
    readers: dict[str, Any] = {}
    for name in _FORMATS:
        module = importlib.import_module(f"PIL.{_MODULES.get(name, name.capitalize())}ImagePlugin")
        readers[name] = Image.OPEN[name]
        if name == "JPEG":
            # The registered reader looks for pictures behind the first (MPO), which is the one that counts.
            readers[name] = (module.JpegImageFile, Image.OPEN[name][1])
    return readers


def _pillow_rows(image: Image.Image, grey_bits: int, tags: _Tags) -> _Rows:
    """Make RGB over white of rows of a loaded Pillow image: (rows, W, 3), or (rows, W, 1) for deep grey."""

    def strip(start: int, stop: int) -> Image.Image:
        whole = start == 0 and stop == image.height
        return image if whole else image.crop((0, start, image.width, stop))

    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _deep_grey_rows(image, strip, tags)
    transparency = image.info.get("transparency")
    # A tRNS chunk states samples as stored; Pillow compares it with samples that it has widened to 8 bits.
    if image.mode == "L" and isinstance(transparency, int) and image.format == "PNG":
        image.info["transparency"] = (transparency & (2**grey_bits - 1)) * 255 // (2**grey_bits - 1)
    elif image.mode == "RGB" and isinstance(transparency, tuple):
        image.info["transparency"] = tuple(value & 255 for value in transparency)
    transparent = image.has_transparency_data

    def rows(start: int, stop: int) -> Pixels:
        part = strip(start, stop)
        if transparent:
            # La has no way to RGBA of its own.
            part = (part.convert("LA") if part.mode == "La" else part).convert("RGBA")
            paper = Image.new("RGB", part.size, "white")
            paper.paste(part, mask=part)
            part = paper
        return np.asarray(part if part.mode == "RGB" else part.convert("RGB"))

    return rows


def _deep_grey_rows(image: Image.Image, strip: Callable[[int, int], Image.Image], tags: _Tags) -> _Rows:
    bits = tags.get(header.TIFF_BITS, (16,))[0]
    unsigned = tags.get(header.TIFF_SAMPLE_FORMAT, (1,))[0] == 1
    transparency = image.info.get("transparency")

    def samples(start: int, stop: int) -> npt.NDArray[Any]:
        part = np.asarray(strip(start, stop))
        # Pillow reads 32 unsigned bits into a signed number.
        return part.view(np.uint32) if image.mode == "I" and bits == 32 and unsigned else part

    low, high = 0.0, 4095.0 if bits == 12 else 65535.0
    # Pillow has scaled the integers of a PPM to 16 bits.
    if not image.mode.startswith("I;16") and (image.format, image.mode) != ("PPM", "I"):
        low, high = header.tiff_range(tags) or _value_range(samples(*part) for part in _strips(*image.size))
    # Pillow heeds that white is at the low end for up to 8 bits only.
    if tags.get(header.TIFF_PHOTOMETRIC, (1,))[0] == 0:
        low, high = high, low

    def rows(start: int, stop: int) -> Pixels:
        part = samples(start, stop)
        grey = _scale(part, low, high)
        if isinstance(transparency, int):
            grey[part == transparency] = 255
        return grey[:, :, None]

    return rows


def _strips(width: int, height: int) -> Iterator[tuple[int, int]]:
    step = max(1, _STRIP_PIXELS // width)
    for start in range(0, height, step):
        yield start, min(height, start + step)


def _assemble(width: int, height: int, rows: _Rows) -> Pixels:
    # One channel is repeated three times by broadcasting.
    pixels = np.empty((height, width, 3), np.uint8)
    for start, stop in _strips(width, height):
        pixels[start:stop] = rows(start, stop)
    return pixels


def _value_range(strips: Iterable[npt.NDArray[Any]]) -> tuple[float, float]:
    """Range of samples that come without one: the smallest usual range that holds them, else their own."""
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
    """Map low..high to 0..255, rounded and clipped; low may be the larger."""
    if samples.dtype.kind == "u" and samples.dtype.itemsize == 2 and (low, high) == (0.0, 65535.0):
        # round(x / 257) in integers, equal for all 65,536 values.
        return ((samples.astype(np.uint32) * 255 + 32895) >> 16).astype(np.uint8)
    with np.errstate(all="ignore"):  # what overflows here is clipped
        unit = (samples.astype(np.float64) - low) / (high - low)
        return (np.clip(np.nan_to_num(unit, nan=0.0), 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)


def _orientation(image: Image.Image) -> int:
    try:
        orientation = image.getexif().get(0x0112, 1)
    except Exception:  # noqa: BLE001  # Pillow fails on bad EXIF in as many ways as on bad pixels
        return 1  # nothing readable asks for a turn, and the pixels are good
    return orientation if isinstance(orientation, int) else 1


def _turn(pixels: Pixels, orientation: int) -> Pixels:
    """Turn (H, W, 3) upright by the EXIF orientation 1 to 8 (CIPA DC-008, section 4.6.2); contiguous."""
    turned: Any = pixels
    if orientation in (5, 7):
        turned = cv2.transpose(turned)
    flip = {2: 1, 3: -1, 4: 0, 7: -1}.get(orientation)
    if flip is not None:
        turned = cv2.flip(turned, flip)
    elif orientation in (6, 8):
        clockwise = orientation == 6
        turned = cv2.rotate(turned, cv2.ROTATE_90_CLOCKWISE if clockwise else cv2.ROTATE_90_COUNTERCLOCKWISE)
    return turned  # type: ignore[no-any-return]


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height <= 0:
        raise ImageError("decode", f"no pixels: {width} x {height}")
    if width * height > max_pixels:
        reason = f"too many pixels: {width} x {height}, above the limit of {max_pixels} (--max-pixels)"
        raise ImageError("decode", reason)


def _one_line(error: BaseException) -> str:
    if isinstance(error.__cause__ or error, (struct.error, IndexError, TypeError, KeyError, EOFError)):
        return "its header is incomplete"  # the text would speak of Python, not of the image
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
    # warnings.catch_warnings is not safe in threads (it restores what another has just replaced), so one
    # filter, for Pillow's modules alone, stands as long as any thread is in here.
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
                with contextlib.suppress(ValueError):  # someone has restored the filters meanwhile
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


def _turn_taken(width: int, height: int) -> contextlib.AbstractContextManager[None]:
    return _one_at_a_time() if width * height > LARGE_PIXELS else contextlib.nullcontext()


@contextlib.contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Hold the turn of this user on this machine for a large image.

    A lock on a file: the kernel releases it when the process dies, and it excludes the threads of a process
    too, because each opens the file for itself.
    """
    descriptor = None
    if fcntl is not None:
        path = Path(tempfile.gettempdir()) / f"featurepress-decode-{os.getuid()}.lock"
        with contextlib.suppress(OSError):  # no place for the file: threads still take turns
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    if descriptor is None:
        with _large_lock:
            yield
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        # By name, not by closing alone: a child that was forked meanwhile holds the file open too.
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)
