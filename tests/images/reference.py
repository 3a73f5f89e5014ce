"""A slow reference for `decode` with Pillow and NumPy, and small files to decode."""

from __future__ import annotations

import io
import json
import resource
import struct
import sys
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"

DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    """Encode with Pillow."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def picture(width: int = 67, height: int = 45, seed: int = 0) -> npt.NDArray[np.uint8]:
    """Draw a smooth RGB image without symmetry, (height, width, 3) uint8."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    waves = np.random.default_rng(seed).uniform(0.02, 0.12, (3, 2))
    channels = [128 + 80 * np.sin(a * x) + 45 * np.cos(b * y + x / 50) for a, b in waves]
    drawn: npt.NDArray[np.uint8] = np.clip(np.stack(channels, -1), 0, 255).astype(np.uint8)
    return drawn


def noise(height: int, width: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    """Return noise, the hardest image to resize: (height, width, 3) uint8."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def deep_picture(channels: int, width: int = 31, height: int = 22, seed: int = 0) -> npt.NDArray[np.uint16]:
    """Return random 16-bit samples, (height, width, channels)."""
    return np.random.default_rng(seed).integers(0, 65536, (height, width, channels), np.uint16)


def upright(pixels: npt.NDArray[Any], orientation: int) -> npt.NDArray[Any]:
    """Turn stored rows and columns by the table of the EXIF standard."""
    rows = {
        1: lambda p: p,
        2: lambda p: p[:, ::-1],
        3: lambda p: p[::-1, ::-1],
        4: lambda p: p[::-1],
        5: lambda p: p.transpose(1, 0, 2),
        6: lambda p: np.rot90(p, -1),
        7: lambda p: np.rot90(p, 2).transpose(1, 0, 2),
        8: lambda p: np.rot90(p, 1),
    }
    return np.ascontiguousarray(rows[orientation](pixels))


def over_white(colour: npt.NDArray[Any], alpha: npt.NDArray[Any], top: float = 255.0) -> npt.NDArray[np.uint8]:
    """Composite (H, W, C) over white by (H, W) alpha, both 0..top, to 0..255."""
    share = alpha.astype(np.float64)[..., None] / top
    unit = colour.astype(np.float64) / top * share + (1.0 - share)
    return np.floor(unit * 255.0 + 0.5).astype(np.uint8)


def from_16_bits(samples: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Scale 0..65535 to 0..255."""
    return np.rint(samples.astype(np.float64) / 257.0).astype(np.uint8)


def from_range(samples: npt.NDArray[Any], stated: tuple[float, float] | None) -> npt.NDArray[np.uint8]:
    """Scale floats and wide integers by their stated range, or by the rule of decode's docstring."""
    values = samples.astype(np.float64)
    finite = values[np.isfinite(values)]
    if stated is not None:
        low, high = stated
    elif finite.min() >= 0 and finite.max() <= 65535:
        low, high = 0.0, next(top for top in (1.0, 255.0, 65535.0) if finite.max() <= top)
    else:
        low, high = finite.min(), finite.max()
    values = np.where(np.isnan(values), low if low < high else high, values)
    return np.floor(np.clip((values - low) / (high - low), 0, 1) * 255.0 + 0.5).astype(np.uint8)


def grey_to_rgb(grey: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Repeat (H, W) three times."""
    return np.repeat(grey[:, :, None], 3, axis=2)


def by_pillow(data: bytes) -> tuple[str, npt.NDArray[np.uint8]]:
    """Return mode and upright RGB over white of the first frame by Pillow; deep grey by the rules above."""
    with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data)) as opened:
        opened.load()
        mode, tags = opened.mode, dict(getattr(opened, "tag_v2", {}))
        try:
            image = ImageOps.exif_transpose(opened)
        except Exception:  # noqa: BLE001
            image = opened
        if mode in DEEP_MODES:
            return mode, grey_to_rgb(_deep_by_pillow(image, str(opened.format), tags))
        if not image.has_transparency_data:
            return mode, np.asarray(image.convert("RGB"))
        rgba = np.asarray((image.convert("LA") if mode == "La" else image).convert("RGBA"))
        return mode, over_white(rgba[..., :3], rgba[..., 3])


def _deep_by_pillow(image: Image.Image, kind: str, tags: dict[int, Any]) -> npt.NDArray[np.uint8]:
    samples = np.asarray(image)
    if kind == "TIFF" and tags.get(258) == (32,) and tags.get(339, (1,)) == (1,):
        samples = samples.view(np.uint32)
    if image.mode.startswith("I;16"):
        full = 4095 if tags.get(258) == (12,) else 65535
        grey = np.floor(samples.astype(np.float64) / full * 255 + 0.5).astype(np.uint8)
    elif kind == "PPM" and image.mode == "I":
        grey = from_16_bits(samples)
    else:
        stated = (np.min(tags[340]), np.max(tags[341])) if 340 in tags and 341 in tags else None
        grey = from_range(samples, stated)
    if kind == "TIFF" and tags.get(262) == 0:
        grey = 255 - grey
    if isinstance(image.info.get("transparency"), int):
        grey = np.where(samples == image.info["transparency"], 255, grey).astype(np.uint8)
    return grey


def png_chunk(name: bytes, body: bytes) -> bytes:
    """Return one chunk with its checksum."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width: int, height: int, depth: int, colour: int, raw: bytes, *before: bytes) -> bytes:
    """Return a PNG of filtered rows `raw`, with the chunks `before` the pixels."""
    head = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    body = png_chunk(b"IDAT", zlib.compress(raw))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(before) + body + png_chunk(b"IEND", b"")


def png_16(samples: npt.NDArray[np.uint16], *before: bytes) -> bytes:
    """Write (H, W, C) as a 16-bit PNG of 1 to 4 channels."""
    height, width, channels = samples.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    return png(width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], rows, *before)


def tiff(samples: npt.NDArray[Any], photometric: int, *more: tuple[int, int, tuple[float, ...]]) -> bytes:
    """Write (H, W, C) as an uncompressed little-endian TIFF of one strip; `more` are (tag, type, values)."""
    height, width, channels = samples.shape
    bits = samples.dtype.itemsize * 8
    form = {"u": 1, "i": 2, "f": 3}[samples.dtype.kind]
    body = samples.astype(samples.dtype.newbyteorder("<")).tobytes()
    entries: list[tuple[int, int, tuple[float, ...]]] = [
        (256, 4, (width,)), (257, 4, (height,)), (258, 3, (bits,) * channels), (259, 3, (1,)),
        (262, 3, (photometric,)), (273, 4, (8,)), (277, 3, (channels,)), (278, 4, (height,)),
        (279, 4, (len(body),)), (339, 3, (form,) * channels), *more,
    ]  # fmt: skip
    start = 8 + len(body) + len(body) % 2
    place = start + 2 + 12 * len(entries) + 4
    directory, values = struct.pack("<H", len(entries)), b""
    for tag, kind, numbers in sorted(entries):
        packed = struct.pack(f"<{len(numbers)}{ {1: 'B', 3: 'H', 4: 'I', 11: 'f', 12: 'd'}[kind] }", *numbers)
        if len(packed) > 4:
            packed, values = (
                struct.pack("<I", place + len(values)),
                values + packed + b"\0" * (len(packed) % 2),
            )
        directory += struct.pack("<HHI", tag, kind, len(numbers)) + packed.ljust(4, b"\0")
    return struct.pack("<2sHI", b"II", 42, start) + body.ljust(start - 8, b"\0") + directory + b"\0" * 4 + values


def exif_block(orientation: int, order: str = "<", extra: bytes = b"") -> bytes:
    """Return EXIF with only an orientation, followed by `extra`."""
    magic = b"II*\0" if order == "<" else b"MM\0*"
    entry = struct.pack(order + "HHIHH", 274, 3, 1, orientation, 0)
    return magic + struct.pack(order + "IH", 8, 1) + entry + struct.pack(order + "I", 0) + extra


def jpeg_with(data: bytes, *segments: tuple[int, bytes]) -> bytes:
    """Insert (marker, body) segments at the start of a JPEG."""
    packed = b"".join(struct.pack(">HH", marker, len(body) + 2) + body for marker, body in segments)
    return data[:2] + packed + data[2:]


def samples_of_all_formats() -> dict[str, bytes]:
    """Return one small file of every format and mode, by name."""
    rgb = Image.fromarray(picture())
    rgba = rgb.copy()
    rgba.putalpha(rgb.convert("L"))
    return {
        "jpeg": encode(rgb, "JPEG"),
        "jpeg grey": encode(rgb.convert("L"), "JPEG"),
        "jpeg cmyk": encode(rgb.convert("CMYK"), "JPEG"),
        "jpeg progressive": encode(rgb, "JPEG", progressive=True),
        "png": encode(rgb, "PNG"),
        "png grey": encode(rgb.convert("L"), "PNG"),
        "png bits": encode(rgb.convert("1"), "PNG"),
        "png palette": encode(rgb.convert("P"), "PNG"),
        "png alpha": encode(rgba, "PNG"),
        "png grey alpha": encode(rgba.convert("LA"), "PNG"),
        "png palette alpha": encode(rgb.convert("P"), "PNG", transparency=bytes(range(256))),
        "webp": encode(rgb, "WEBP"),
        "webp lossless": encode(rgb, "WEBP", lossless=True),
        "webp alpha": encode(rgba, "WEBP"),
        "gif": encode(rgb, "GIF"),
        "gif transparent": encode(rgb.convert("P"), "GIF", transparency=3),
        "bmp": encode(rgb, "BMP"),
        "tiff": encode(rgb, "TIFF"),
        "tiff lzw": encode(rgb, "TIFF", compression="tiff_lzw"),
        "tiff jpeg": encode(rgb, "TIFF", compression="jpeg"),
        "tiff alpha": encode(rgba, "TIFF"),
        "tiff cmyk": encode(rgb.convert("CMYK"), "TIFF"),
        "tiff lab": encode(Image.frombytes("LAB", rgb.size, rgb.tobytes()), "TIFF"),
        "tiff ycbcr": encode(rgb.convert("YCbCr"), "TIFF"),
        "tiff bits": encode(rgb.convert("1"), "TIFF", compression="group4"),
        "ppm": encode(rgb, "PPM"),
        "pgm": encode(rgb.convert("L"), "PPM"),
        "pbm": encode(rgb.convert("1"), "PPM"),
        "ico": encode(rgba, "ICO", sizes=[(32, 32)]),
        "tga": encode(rgba, "TGA"),
        "jpeg 2000": encode(rgb, "JPEG2000"),
        "avif": encode(rgb, "AVIF"),
        "avif alpha": encode(rgba, "AVIF"),
        "qoi": encode(rgb, "QOI"),
        "pcx": encode(rgb, "PCX"),
        "sgi": encode(rgb, "SGI"),
        "dds": encode(rgba, "DDS"),
        "png of 16 bits": png_16(deep_picture(3)),
        "png of 16 bits with alpha": png_16(deep_picture(4)),
        "tiff of 16 bits": tiff(deep_picture(3), 2),
        "tiff of floats": tiff(deep_picture(1).astype(np.float32), 1),
        "tiff of floats in colour": tiff(deep_picture(3).astype(np.float32), 2),
        "xbm": encode(rgb.convert("1"), "XBM"),
    }


def peak_bytes() -> int:
    """Return the maximum memory of this process so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def survey(root: Path) -> None:
    """Decode every file below `root`, then compare with Pillow, and print it all as JSON (run in a child)."""
    from featurepress.errors import ImageError
    from featurepress.images.decode import decode

    warnings.simplefilter("error")
    files = sorted(path for path in root.rglob("*") if path.is_file())
    before, rows = peak_bytes(), []
    for path in files:
        data, row = path.read_bytes(), {"name": str(path.relative_to(root))}
        try:
            pixels = decode(data)
        except ImageError as error:
            row["failure"] = str(error)
        else:
            assert pixels.dtype == np.uint8
            assert pixels.ndim == 3
            assert pixels.shape[2] == 3
            assert pixels.flags.c_contiguous
        rows.append(row)
    growth = peak_bytes() - before
    for path, row in zip(files, rows, strict=True):
        row.update(_compare(path.read_bytes()))
    print(json.dumps({"growth": growth, "files": rows}))


def _compare(data: bytes) -> dict[str, Any]:
    from featurepress.errors import ImageError
    from featurepress.images.decode import decode

    try:
        mode, expected = by_pillow(data)
    except Exception:  # noqa: BLE001
        return {"pillow": None}
    try:
        pixels = decode(data)
    except ImageError:
        return {"pillow": mode}
    if pixels.shape != expected.shape:
        return {"pillow": mode, "difference": 255.0, "largest": 255}
    gap = np.abs(pixels.astype(np.int16) - expected)
    return {"pillow": mode, "difference": float(gap.mean()), "largest": int(gap.max())}
