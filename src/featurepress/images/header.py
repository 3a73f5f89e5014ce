"""Read the size of an image from its header, before anything is decoded.

`featurepress.images.decode` needs the size, to check limits before memory is allocated, and the few properties that
determine the decoder. For bytes that a function does not understand, it returns None or nothing: Pillow then reads
the header.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from featurepress.errors import ImageError

# Frequent kinds of files that are not supported: (signature or signatures, position, name).
_UNSUPPORTED: tuple[tuple[bytes | tuple[bytes, ...], int, str], ...] = (
    ((b"ftyphei", b"ftyphev"), 4, "HEIC"),
    ((b"ftypmif1", b"ftypmsf1"), 4, "HEIF"),
    (b"ftypcrx", 4, "camera raw (CR3)"),
    ((b"ftypisom", b"ftypmp4"), 4, "video (MP4)"),
    (b"ftypqt", 4, "video (QuickTime)"),
    ((b"\xff\x0a", b"\0\0\0\x0cJXL "), 0, "JPEG XL"),
    (b"\x76\x2f\x31\x01", 0, "OpenEXR"),
    ((b"#?RADIANCE", b"#?RGBE"), 0, "Radiance HDR"),
    (b"%PDF", 0, "PDF"),
    (b"%!PS", 0, "PostScript"),
    (b"icns", 0, "ICNS"),
    (b"<svg", 0, "SVG"),
    (b"<?xml", 0, "SVG or other XML"),
)

JPEG_SIGNATURE = b"\xff\xd8\xff"
JPEG_END = b"\xff\xd9"
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
TIFF_SIGNATURES = (b"II\x2a\x00", b"MM\x00\x2a", b"II\x2b\x00", b"MM\x00\x2b", b"MM\x2a\x00", b"II\x00\x2a")
ICO_SIGNATURE = b"\x00\x00\x01\x00"

Tags = dict[int, tuple[float, ...]]

# The tags of TIFF 6.0 (Adobe, 1992) that are used.
TIFF_WIDTH, TIFF_HEIGHT, TIFF_BITS, TIFF_PHOTOMETRIC, TIFF_PLANAR = 256, 257, 258, 262, 284
TIFF_TILE_WIDTH, TIFF_TILE_HEIGHT, TIFF_EXTRA_SAMPLES, TIFF_SAMPLE_FORMAT = 322, 323, 338, 339
TIFF_MIN_SAMPLE, TIFF_MAX_SAMPLE = 340, 341
_TIFF_TAGS = frozenset((256, 257, 258, 262, 284, 322, 323, 338, 339, 340, 341))
_TIFF_TYPES = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 11: "f", 12: "d", 16: "Q", 17: "q"}
_TIFF_MAX_VALUES = 16  # of one tag: these tags have at most one value per sample

_EXIF_ORIENTATION = 274

MAX_SCANS = 500
"""Of a progressive JPEG. Each scan visits every block, so that a small file could take hours.

Encoders write about ten; the fuzzers of libjpeg-turbo stop at 500.
"""

# SOF0 to SOF15 without DHT, JPG and DAC, which share their range (ITU T.81, table B.1).
_JPEG_FRAMES = frozenset(range(0xFFC0, 0xFFD0)) - {0xFFC4, 0xFFC8, 0xFFCC}
# Baseline, extended or progressive, with Huffman or arithmetic coding. The rest is lossless or hierarchical.
_JPEG_DCT_FRAMES = frozenset((0xFFC0, 0xFFC1, 0xFFC2, 0xFFC9, 0xFFCA))
_JPEG_PROGRESSIVE_FRAMES = frozenset((0xFFC2, 0xFFCA))
# Segments that are skipped: tables, APP0, APP2 to APP15, comments.
_JPEG_SKIPPED = frozenset((0xFFC4, 0xFFCC, 0xFFDB, 0xFFDD, 0xFFE0, 0xFFFE, *range(0xFFE2, 0xFFF0)))
_JPEG_SCAN, _JPEG_APP1 = 0xFFDA, 0xFFE1

_segment = struct.Struct(">HH").unpack_from
_frame = struct.Struct(">BHHB").unpack_from
_chunk = struct.Struct(">I4s").unpack_from


def jpeg_header(data: bytes) -> tuple[int, int, bool, int, int] | None:
    """Read the header of a JPEG (data that starts with `JPEG_SIGNATURE`) up to its first scan.

    Returns
    -------
    tuple or None
        Width and height in pixels as stored; whether it is plain (DCT, 8 bits, 1 or 3 components); the EXIF
        orientation, 1 to 8, or 0 if only Pillow can read it; the position after the scan header. None if the
        segments do not lead to a scan. A tuple, because this runs for every image: 1.5 microseconds.

    Raises
    ------
    ImageError
        A progressive JPEG has more than `MAX_SCANS` scans.
    """
    position, frame, plain, progressive, orientation = 2, None, False, False, 1
    try:
        while True:  # the end of the data raises
            marker, length = _segment(data, position)
            if marker in _JPEG_SKIPPED:
                pass
            elif marker in _JPEG_FRAMES:
                if frame is not None:
                    return None
                frame = precision, _, _, components = _frame(data, position + 4)
                plain = marker in _JPEG_DCT_FRAMES and precision == 8 and components in (1, 3)
                progressive = marker in _JPEG_PROGRESSIVE_FRAMES
            elif marker == _JPEG_SCAN and frame is not None:
                if progressive and data.count(b"\xff\xda", position) > MAX_SCANS:
                    raise ImageError("decode", f"damaged: more than {MAX_SCANS} scans in a progressive JPEG")
                return frame[2], frame[1], plain, orientation, position + 2 + length
            elif marker == _JPEG_APP1 and length >= 2:
                orientation = _app1_orientation(data[position + 4 : position + 2 + length], orientation)
            else:
                return None
            position += 2 + length
    except struct.error:
        return None


def _app1_orientation(segment: bytes, before: int) -> int:
    # `before` is the orientation of earlier segments; if there are two, Pillow decides.
    if segment.startswith(b"Exif\0\0"):
        return exif_orientation(segment[6:]) if before == 1 else 0
    return 0 if b"tiff:Orientation" in segment else before


def exif_orientation(tiff: bytes) -> int:
    """Return the orientation, 1 to 8, of an EXIF block without its prefix; 0 if only Pillow can read it.

    References
    ----------
    CIPA DC-008 (Exif 2.32), section 4.6.2.
    """
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return 0
    try:
        (start,) = struct.unpack_from(order + "I", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, values, value = struct.unpack_from(order + "HHIH", tiff, entry)
            if tag == _EXIF_ORIENTATION:
                return int(value) if kind == 3 and values == 1 and 1 <= value <= 8 else 0
    except struct.error:
        return 0
    return 1


class PngHeader(NamedTuple):
    """The facts in the chunks of a PNG."""

    width: int
    height: int
    depth: int  # bits per sample: 1, 2, 4, 8 or 16
    colour: int  # 0 grey, 2 RGB, 3 palette, 4 grey with alpha, 6 RGB with alpha
    transparent: bool  # it has a tRNS chunk
    animated: bool  # it has an acTL chunk (APNG)
    oriented: bool  # it has EXIF or XMP, which may turn it
    complete: bool  # valid chunks lead to the end chunk, and one has pixels


def png_header(data: bytes) -> PngHeader | None:
    """Read the chunks of a PNG, but not its pixels; None if the first chunk is not a header."""
    if data[12:16] != b"IHDR" or len(data) < 33:
        return None
    width, height, depth, colour = struct.unpack_from(">IIBB", data, 16)
    transparent = animated = oriented = complete = pixels = False
    position = 8
    while position + 12 <= len(data):
        length, name = _chunk(data, position)
        if name == b"IEND":
            complete = pixels
            break
        if name == b"IDAT":
            pixels = True
        elif name == b"tRNS":
            transparent = True
        elif name == b"acTL":
            animated = True
        elif name == b"eXIf":
            oriented = True
        elif name in (b"iTXt", b"zTXt", b"tEXt"):
            keyword = data[position + 8 : position + 40]
            oriented |= keyword.startswith((b"XML:com.adobe.xmp", b"Raw profile type"))
        elif not name.isalpha() or (name[:1].isupper() and name not in (b"IHDR", b"PLTE")):
            break  # OpenCV takes ten seconds for a file of 1 kB whose IDAT has a damaged name
        position += 12 + length
    return PngHeader(width, height, depth, colour, transparent, animated, oriented, complete)


def webp_size(data: bytes) -> tuple[int, int] | None:
    """Return width and height in pixels of a WebP, from its first 30 bytes; None for other data.

    References
    ----------
    RFC 9649 (WebP image format), sections 2.5 to 2.7.
    """
    chunk = data[12:16]
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP" or len(data) < 30:
        return None
    if chunk == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    if chunk == b"VP8L" and data[20] == 0x2F:
        (bits,) = struct.unpack_from("<I", data, 21)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if chunk == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    return None


def ico_sizes(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield the (width, height) in pixels of every image in a Windows icon.

    They are read from the images: the directory of an icon has only sizes up to 256.
    """
    for entry in range(6, 6 + 16 * int.from_bytes(data[4:6], "little"), 16):
        start = int.from_bytes(data[entry + 12 : entry + 16], "little")
        image = data[start : start + 24]
        if image.startswith(PNG_SIGNATURE) and len(image) == 24:
            yield struct.unpack_from(">II", image, 16)
        elif len(image) == 24:
            width, height = struct.unpack_from("<ii", image, 4)
            yield abs(width), abs(height) // 2  # the bitmap also contains the mask


def tiff_tags(data: bytes) -> Tags:
    """Read the tags of this module in the first directory of a TIFF or BigTIFF, at most 16 values of each."""
    order = "<" if data[:2] == b"II" else ">"
    big = 43 in data[2:4]
    start_format, count_format, entry_size = ("Q", "Q", 20) if big else ("I", "H", 12)
    tags: Tags = {}
    try:
        (start,) = struct.unpack_from(order + start_format, data, 8 if big else 4)
        (count,) = struct.unpack_from(order + count_format, data, start)
        first = start + struct.calcsize(order + count_format)
        for entry in range(first, min(first + count * entry_size, len(data)), entry_size):
            tag, kind, values = struct.unpack_from(order + "HH" + start_format, data, entry)
            if tag not in _TIFF_TAGS or kind not in _TIFF_TYPES or not values:
                continue
            layout = f"{order}{min(values, _TIFF_MAX_VALUES)}{_TIFF_TYPES[kind]}"
            position = entry + (12 if big else 8)
            if struct.calcsize(f"{order}{_TIFF_TYPES[kind]}") * values > (8 if big else 4):
                (position,) = struct.unpack_from(order + start_format, data, position)
            tags[tag] = struct.unpack_from(layout, data, position)
    except (struct.error, OverflowError):
        pass  # the tags before the damage are valid
    return tags


def tiff_range(tags: Tags) -> tuple[float, float] | None:
    """Return the stated smallest and largest sample of a TIFF (SMinSampleValue, SMaxSampleValue), or None."""
    low, high = tags.get(TIFF_MIN_SAMPLE), tags.get(TIFF_MAX_SAMPLE)
    return (min(low), max(high)) if low and high and min(low) < max(high) else None


def unsupported_kind(data: bytes) -> str | None:
    """Return the format of a file that is known but not supported, such as HEIC; None for any other."""
    return next((kind for signature, start, kind in _UNSUPPORTED if data.startswith(signature, start)), None)


def ends_early(data: bytes) -> bool:
    """Whether a JPEG has no end marker, a PNG no end chunk, or a WebP fewer bytes than its header states."""
    if data.startswith(JPEG_SIGNATURE):
        found = jpeg_header(data)
        # Without a scan header, an end marker inside may be that of a thumbnail.
        return not data.endswith(JPEG_END) if found is None else data.find(JPEG_END, found[4]) < 0
    if data.startswith(PNG_SIGNATURE):
        return data.find(b"IEND", 8) < 0
    return data.startswith(b"RIFF") and len(data) < int.from_bytes(data[4:8], "little") + 8
