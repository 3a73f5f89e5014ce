"""Decoding: each rule on small images, compared with the slow reference."""

from __future__ import annotations

import io
import struct
import threading
import time
import warnings
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from featurepress.errors import ImageError
from featurepress.images import header
from featurepress.images.decode import decode
from tests.images.reference import (
    by_pillow,
    deep_picture,
    encode,
    exif_block,
    from_16_bits,
    from_range,
    grey_to_rgb,
    jpeg_with,
    over_white,
    picture,
    png,
    png_16,
    png_chunk,
    samples_of_all_formats,
    tiff,
    upright,
)


def assert_same(data: bytes, expected: Any, *, within: int = 0) -> None:
    pixels = decode(data)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable
    assert pixels.shape == expected.shape
    gap = np.abs(pixels.astype(np.int16) - expected)
    assert gap.max(initial=0) <= within


def reason(data: bytes, **options: Any) -> str:
    with pytest.raises(ImageError) as caught:
        decode(data, **options)
    assert caught.value.stage == "decode"
    assert "\n" not in caught.value.reason
    return caught.value.reason


SAMPLES = samples_of_all_formats()


@pytest.mark.parametrize("name", SAMPLES)
def test_every_format_and_mode_agrees_with_the_reference(name: str) -> None:
    if name == "tiff of floats in colour":  # unknown to Pillow
        expected = from_range(deep_picture(3).astype(np.float32), None)
    else:
        _, expected = by_pillow(SAMPLES[name])
    # Of colours of 16 bits Pillow drops the low byte, of the alpha too.
    assert_same(SAMPLES[name], expected, within=2 if "16 bits" in name else 1)


def test_a_memoryview_is_read_like_bytes() -> None:
    data = SAMPLES["jpeg"]
    assert_same(memoryview(data), decode(data))  # type: ignore[arg-type]


def test_one_pixel_and_thin_images() -> None:
    for size in ((1, 1), (1, 500), (500, 1), (3000, 2)):
        image = Image.fromarray(picture(*size))
        for kind in ("PNG", "JPEG", "WEBP", "GIF"):
            data = encode(image, kind)
            assert_same(data, by_pillow(data)[1], within=1)


# Orientation


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_exif_orientation_is_applied(kind: str, orientation: int) -> None:
    image = Image.fromarray(picture())
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = decode(encode(image, kind))
    assert_same(encode(image, kind, exif=exif), upright(stored, orientation), within=2 if kind == "AVIF" else 0)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("order", "<>")
def test_exif_orientation_of_a_cmyk_jpeg_and_of_16_bits(order: str, orientation: int) -> None:
    block = exif_block(orientation, order)
    cmyk = encode(Image.fromarray(picture()).convert("CMYK"), "JPEG")
    assert_same(jpeg_with(cmyk, (0xFFE1, b"Exif\0\0" + block)), upright(decode(cmyk), orientation))
    deep = deep_picture(3)
    assert_same(png_16(deep, png_chunk(b"eXIf", block)), upright(from_16_bits(deep), orientation))
    assert_same(tiff(deep, 2, (274, 3, (orientation,))), upright(from_16_bits(deep), orientation))


@pytest.mark.parametrize(
    "segments",
    [
        [(0xFFE1, b"http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation=\"6\"/>")],
        [(0xFFE1, b"http://ns.adobe.com/xap/1.0/\0<x/>"), (0xFFE1, b"Exif\0\0" + exif_block(6))],
        [(0xFFE1, b"Exif\0\0" + exif_block(6)), (0xFFE1, b"http://ns.adobe.com/xap/1.0/\0<x/>")],
        [(0xFFE1, b"Exif\0\0" + exif_block(6)), (0xFFE1, b"Exif\0\0" + exif_block(8))],
        [(0xFFE1, b"Exif\0\0" + exif_block(6).replace(b"\x12\x01\x03\0", b"\x12\x01\x04\0"))],
        [(0xFFE1, b"Exif\0\0" + exif_block(0))],
        [(0xFFE1, b"Exif\0\0" + exif_block(9))],
        [(0xFFE1, b"Exif\0\0" + exif_block(6)[:12])],
        [(0xFFE1, b"Exif\0\0II*\0\xff\xff\xff\xff")],
        [(0xFFE1, b"Exif\0\0garbage")],
        [(0xFFE1, b"")],
        [(0xFFEF, b"nothing"), (0xFFFE, b"comment"), (0xFFE1, b"Exif\0\0" + exif_block(3))],
    ],
)  # fmt: skip
def test_odd_metadata_turns_as_in_pillow(segments: list[tuple[int, bytes]]) -> None:
    data = jpeg_with(SAMPLES["jpeg"], *segments)
    assert_same(data, by_pillow(data)[1])


def test_png_with_xmp_orientation_turns_as_in_pillow() -> None:
    text = png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + b'<x tiff:Orientation="6"/>')
    plain = picture(8, 5)
    data = png(8, 5, 8, 2, b"".join(b"\0" + row.tobytes() for row in plain), text)
    assert_same(data, upright(plain, 6))


# Transparency


def test_alpha_is_composited_over_white() -> None:
    colour = picture(16, 16)
    alpha = np.arange(256, dtype=np.uint8).reshape(16, 16)
    data = encode(Image.fromarray(np.dstack([colour, alpha])), "PNG")
    assert_same(data, over_white(colour, alpha))


def test_alpha_of_16_bits_is_composited_over_white() -> None:
    for channels in (2, 4):
        deep = deep_picture(channels)
        expected = over_white(deep[..., :-1], deep[..., -1], 65535.0)
        assert_same(png_16(deep), np.broadcast_to(expected, (*expected.shape[:2], 3)))


def test_tiff_alpha_of_16_bits_plain_premultiplied_and_unknown() -> None:
    deep = deep_picture(4)
    plain = over_white(deep[..., :3], deep[..., 3], 65535.0)
    assert_same(tiff(deep, 2, (338, 3, (2,))), plain)
    assert_same(tiff(deep, 2, (338, 3, (0,))), from_16_bits(deep[..., :3]))
    premultiplied = deep.copy()
    premultiplied[..., :3] = (deep[..., :3].astype(np.float64) * deep[..., 3:] / 65535).round().astype(np.uint16)
    assert_same(tiff(premultiplied, 2, (338, 3, (1,))), plain, within=1)


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_transparent_grey_of_a_png_is_white(depth: int) -> None:
    top = 2**depth - 1
    values = np.linspace(0, top, 8).round().astype(np.uint32)
    key = int(values[2])
    bits = "".join(f"{value:0{depth}b}" for value in values)
    row = int(bits, 2).to_bytes(depth, "big")
    data = png(8, 1, depth, 0, b"\0" + row, png_chunk(b"tRNS", struct.pack(">H", key)))
    grey = np.rint(values * 255.0 / top).astype(np.uint8)
    grey[values == key] = 255
    assert_same(data, grey_to_rgb(grey[None]))


def test_transparent_colour_of_a_png_is_white() -> None:
    plain = picture(9, 7)
    rows = b"".join(b"\0" + row.tobytes() for row in plain)
    key = tuple(int(value) for value in plain[3, 4])
    expected = np.where((plain == plain[3, 4]).all(-1, keepdims=True), 255, plain)
    assert_same(png(9, 7, 8, 2, rows, png_chunk(b"tRNS", struct.pack(">3H", *key))), expected)
    deep = deep_picture(3)
    expected = from_16_bits(deep)
    expected[5, 6] = 255
    chunk = png_chunk(b"tRNS", struct.pack(">3H", *(int(value) for value in deep[5, 6])))
    assert_same(png_16(deep, chunk), expected)


def test_transparent_palette_entries_are_composited() -> None:
    palette, alphas = picture(4, 1)[0], bytes([0, 100, 255, 200])
    chunks = png_chunk(b"PLTE", palette.tobytes()), png_chunk(b"tRNS", alphas)
    data = png(4, 1, 8, 3, b"\0\0\1\2\3", *chunks)
    assert_same(data, over_white(palette[None], np.frombuffer(alphas, np.uint8)[None]))


# Depth and range


def test_16_bits_are_scaled_by_257_with_rounding() -> None:
    every = np.arange(65536, dtype=np.uint16).reshape(256, 256, 1)
    expected = grey_to_rgb(from_16_bits(every[..., 0]))
    assert_same(png_16(every), expected)
    assert_same(tiff(every, 1), expected)
    assert_same(tiff(every, 0), 255 - expected)
    assert_same(encode(Image.fromarray(every[..., 0]), "TIFF", compression="tiff_lzw"), expected)
    deep = deep_picture(3)
    assert_same(png_16(deep), from_16_bits(deep))
    assert_same(tiff(deep, 2), from_16_bits(deep))


def test_a_pgm_of_16_bits_is_scaled_by_its_maximum() -> None:
    values = np.arange(0, 1001, 4, dtype=">u2")
    data = b"P5 %d 1 1000\n" % len(values) + values.tobytes()
    assert_same(data, grey_to_rgb(np.rint(values * 255.0 / 1000).astype(np.uint8)[None]), within=1)


@pytest.mark.parametrize(
    ("low", "high"),
    [(0.0, 1.0), (0.1, 0.2), (0.0, 200.0), (3.0, 40000.0), (-1.0, 1.0), (-7e8, 5e9), (0.5, 0.5)],
)
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_floats_without_a_range_have_a_usual_one(low: float, high: float, dtype: str) -> None:
    values = np.linspace(low, high, 200).reshape(10, 20, 1).astype(dtype)
    assert_same(tiff(values, 1), grey_to_rgb(from_range(values[..., 0], None)))
    colour = np.concatenate([values, values[::-1], values * 0.5], -1)
    assert_same(tiff(colour, 2), from_range(colour, None))


def test_floats_with_a_stated_range_are_scaled_by_it() -> None:
    values = np.linspace(-3, 12, 200).reshape(10, 20, 1).astype(np.float32)
    stated: list[tuple[int, int, tuple[float, ...]]] = [(340, 11, (-2.0,)), (341, 11, (10.0,))]
    expected = grey_to_rgb(from_range(values[..., 0], (-2.0, 10.0)))
    assert_same(tiff(values, 1, *stated), expected)
    assert_same(tiff(values, 0, *stated), 255 - expected)


def test_nan_is_black_and_infinity_is_clipped() -> None:
    values = np.array([[np.nan, np.inf, -np.inf, 0.5, 1.0]], np.float32)[..., None]
    assert decode(tiff(values, 1))[0, :, 0].tolist() == [0, 255, 0, 128, 255]
    assert decode(tiff(values[:, :3], 1))[0, :, 0].tolist() == [0, 255, 0]


@pytest.mark.parametrize("dtype", ["i2", "i4", "u4"])
def test_wide_and_signed_integers(dtype: str) -> None:
    for low, high in ((0, 200), (0, 60000 if dtype != "i2" else 30000), (5, np.iinfo(dtype).max)):
        values = np.linspace(low, high, 150).astype(dtype).reshape(10, 15, 1)
        for data in (
            tiff(values, 1),
            encode(Image.fromarray(values[..., 0]), "TIFF") if dtype == "i4" else b"",
        ):
            if data:
                assert_same(data, grey_to_rgb(from_range(values[..., 0], None)), within=1)


# First frames


def test_the_first_frame_of_an_animation_is_decoded() -> None:
    first, second = Image.fromarray(picture(seed=1)), Image.fromarray(picture(seed=2))
    for kind in ("GIF", "PNG", "WEBP", "TIFF", "AVIF"):
        options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
        data = encode(first, kind, save_all=True, append_images=[second], **options)
        assert_same(data, by_pillow(data)[1])
        assert np.abs(decode(data).astype(int) - picture(seed=1)).mean() < 8


def test_the_first_image_of_a_multi_picture_jpeg_is_decoded() -> None:
    data = encode(
        Image.fromarray(picture(seed=1)), "MPO", save_all=True, append_images=[Image.fromarray(picture())]
    )
    assert_same(data, decode(encode(Image.fromarray(picture(seed=1)), "JPEG")))


# Truncation


def thumbnail_jpeg() -> bytes:
    block = exif_block(6, extra=SAMPLES["jpeg"])
    return jpeg_with(encode(Image.fromarray(picture(50, 30)), "JPEG"), (0xFFE1, b"Exif\0\0" + block))


@pytest.mark.parametrize("kind", ["baseline", "progressive", "thumbnail", "cmyk"])
def test_a_truncated_jpeg_is_decoded_or_refused_as_by_pillow(kind: str) -> None:
    image = Image.fromarray(picture(40, 24))
    data = {
        "baseline": encode(image, "JPEG"),
        "progressive": encode(image, "JPEG", progressive=True),
        "thumbnail": thumbnail_jpeg(),
        "cmyk": encode(image.convert("CMYK"), "JPEG"),
    }[kind]
    assert data.endswith(b"\xff\xd9")
    for cut in range(1, len(data), 3 if kind != "thumbnail" else 7):
        try:
            _, expected = by_pillow(data[:cut])
        except Exception:  # noqa: BLE001
            why = reason(data[:cut])
            assert cut < 3 or "truncated" in why, why
        else:
            assert_same(data[:cut], expected)
    # Without its last bytes Pillow may still have every row; without its last tenth it has not.
    assert "truncated" in reason(data[: len(data) * 19 // 20])


def test_the_end_marker_of_a_thumbnail_does_not_count() -> None:
    data = thumbnail_jpeg()
    cut = data[: len(data) * 9 // 10]
    assert b"\xff\xd9" in cut
    assert "truncated" in reason(cut)


def test_bytes_after_a_jpeg_are_ignored() -> None:
    for tail in (b"\0", b"\0" * 1000, b"trailing", SAMPLES["png"]):
        assert_same(SAMPLES["jpeg"] + tail, decode(SAMPLES["jpeg"]))


@pytest.mark.parametrize(
    "name", ["png", "png alpha", "webp", "webp alpha", "gif", "tiff lzw", "bmp", "qoi", "avif"]
)
def test_truncated_files_of_other_formats_are_refused_or_as_in_pillow(name: str) -> None:
    data = SAMPLES[name]
    for cut in {1, 5, 9, 20, 30, 60, len(data) // 3, len(data) // 2, len(data) * 9 // 10, len(data) - 1}:
        try:
            _, expected = by_pillow(data[:cut])
        except Exception:  # noqa: BLE001
            assert reason(data[:cut])
        else:
            assert_same(data[:cut], expected, within=1)


# Refusals


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "zero bytes"),
        (b"hello, this is a text file of some length, not a picture", "not an image"),
        (b"\0" * 5000, "not an image"),
        (b"\0\0\0\x1cftypheic\0\0\0\0mif1heic", "HEIC is not supported; convert it to JPEG or PNG"),
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1heic", "HEIF is not supported; convert it to JPEG or PNG"),
        (b"\xff\x0a\xfa\x1f\x01\x91\x08\x06\x01\0", "JPEG XL is not supported; convert it to JPEG or PNG"),
        (b"%PDF-1.7 and so on and so forth", "PDF is not supported; convert it to JPEG or PNG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "PostScript is not supported"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG is not supported; convert it to JPEG or PNG"),
        (b"\x76\x2f\x31\x01\x02\0\0\0channels", "OpenEXR is not supported; convert it to JPEG or PNG"),
    ],
)
def test_the_reason_for_an_undecodable_file_is_named(data: bytes, expected: str) -> None:
    assert reason(data).startswith(expected)


@pytest.mark.parametrize("name", SAMPLES)
def test_too_many_pixels_are_refused(name: str) -> None:
    height, width = decode(SAMPLES[name]).shape[:2]
    expected = f"too many pixels: {width} x {height}, above the limit of {width * height - 1} (--max-pixels)"
    assert reason(SAMPLES[name], max_pixels=width * height - 1) == expected
    decode(SAMPLES[name], max_pixels=width * height)


def test_zero_sized_images_are_refused() -> None:
    jpeg = bytearray(SAMPLES["jpeg"])
    place = jpeg.index(b"\xff\xc0")
    jpeg[place + 5 : place + 7] = b"\0\0"
    assert reason(bytes(jpeg)) == "no pixels: 67 x 0"
    assert "no pixels: 0 x 5" in reason(png(0, 5, 8, 2, b""))
    assert reason(tiff(np.zeros((0, 5, 1), np.uint8), 1))


def test_a_png_with_a_damaged_chunk_name_is_refused_quickly() -> None:
    # OpenCV alone takes up to ten seconds for it.
    for name in (b"I\0AT", b"IDAX", b"idat"):
        start = time.process_time()
        assert reason(SAMPLES["png grey"].replace(b"IDAT", name))
        assert time.process_time() - start < 1


def test_too_many_scans_are_refused() -> None:
    data = SAMPLES["jpeg progressive"]
    scan = data.index(b"\xff\xda")
    length = 2 + int.from_bytes(data[scan + 2 : scan + 4], "big")
    bomb = data[:-2] + data[scan : scan + length] * (header.MAX_SCANS + 1) + data[-2:]
    assert "scans" in reason(bomb)
    decode(data)


# Pillow's global state


def test_pillows_own_limit_is_ignored_and_kept() -> None:
    before = Image.MAX_IMAGE_PIXELS
    try:
        Image.MAX_IMAGE_PIXELS = 100
        for name, data in SAMPLES.items():
            assert decode(data).size, name
            assert Image.MAX_IMAGE_PIXELS == 100
        assert "above the limit of 500" in reason(SAMPLES["gif"], max_pixels=500)
    finally:
        Image.MAX_IMAGE_PIXELS = before


def test_pillows_warnings_are_hidden_and_the_filters_are_restored() -> None:
    rows = b"".join(b"\0" + row.tobytes() for row in picture(8, 5))
    data = png(8, 5, 8, 2, rows, png_chunk(b"acTL", struct.pack(">II", 0, 0)))
    with pytest.warns(UserWarning, match="Invalid APNG"), Image.open(io.BytesIO(data)) as image:
        image.load()
    before = list(warnings.filters)
    assert_same(data, picture(8, 5))
    assert list(warnings.filters) == before


def test_threads_decode_at_the_same_time() -> None:
    names = [name for name in SAMPLES if name not in ("qoi",)]
    expected = {name: decode(SAMPLES[name]) for name in names}
    wrong: list[str] = []

    def work(start: int) -> None:
        for name in names[start:] + names[:start]:
            try:
                if not np.array_equal(decode(SAMPLES[name]), expected[name]):
                    wrong.append(name)
            except ImageError as error:
                wrong.append(f"{name}: {error}")

    before = list(warnings.filters)
    threads = [threading.Thread(target=work, args=(start * 5,)) for start in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert list(warnings.filters) == before


def test_opencv_is_single_threaded() -> None:
    assert cv2.getNumThreads() == 1


# Anything else


@settings(
    max_examples=400,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(
    name=st.sampled_from(sorted(SAMPLES)),
    changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=6),
    cut=st.floats(0, 1) | st.none(),
    early=st.booleans(),
)
def test_corrupt_bytes_are_decoded_or_an_image_error(
    name: str, changes: list[tuple[float, int]], cut: float | None, early: bool
) -> None:
    data = bytearray(SAMPLES[name])
    for place, value in changes:
        reach = min(len(data), 120) if early else len(data)  # headers are where the surprises are
        data[int(place * (reach - 1))] = value
    if cut is not None:
        del data[int(cut * len(data)) :]
    try:
        pixels = decode(bytes(data), max_pixels=200_000)
    except ImageError as error:
        assert error.stage == "decode"
        assert "\n" not in error.reason
    else:
        assert pixels.dtype == np.uint8
        assert pixels.ndim == 3
        assert pixels.shape[2] == 3
        assert 0 < pixels.shape[0] * pixels.shape[1] <= 200_000


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(st.binary(max_size=200), st.sampled_from([b"", *(data[:16] for data in SAMPLES.values())]))
def test_random_bytes_are_decoded_or_an_image_error(tail: bytes, head: bytes) -> None:
    try:
        pixels = decode(head + tail, max_pixels=200_000)
    except ImageError:
        return
    assert pixels.ndim == 3
