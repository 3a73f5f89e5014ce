"""Huge images are refused from the header without allocating memory, or decoded one at a time."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from featurepress.images.decode import LARGE_PIXELS, decode, one_at_a_time
from tests.images.reference import encode, picture, png, png_chunk, tiff

ROOT = Path(__file__).resolve().parents[2]

CHILD = """
import json, sys, warnings
from pathlib import Path
warnings.simplefilter("error")
from featurepress.errors import ImageError
from featurepress.images.decode import decode
from tests.images.reference import peak_bytes

folder = Path(sys.argv[1])
decode((folder / "warm").read_bytes())
found = {}
for path in sorted(folder.glob("bomb *")):
    before = peak_bytes()
    try:
        answer = str(decode(path.read_bytes()).shape)
    except ImageError as error:
        answer = str(error)
    found[path.name[5:]] = [answer, peak_bytes() - before]
print(json.dumps(found))
"""


def small(kind: str, **options: Any) -> bytes:
    return encode(Image.fromarray(picture(32, 32)), kind, **options)


def patched(data: bytes, place: int, layout: str, *values: int) -> bytes:
    """Put numbers over the bytes at `place`."""
    new = struct.pack(layout, *values)
    return data[:place] + new + data[place + len(new) :]


def jpeg_of(width: int, height: int, **options: Any) -> bytes:
    data = small("JPEG", **options)
    frame = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2"))
    return patched(data, frame + 5, ">HH", height, width)


def jpeg_behind_junk() -> bytes:
    # Our own reader of headers does not follow; Pillow and libjpeg skip what is between segments.
    data = jpeg_of(60000, 60000)
    return data[:20] + b"junk" + data[20:]


def gif_frame(width: int, height: int) -> bytes:
    data = small("GIF")
    frame = data.index(b",\0\0\0\0 \0 \0")
    return patched(data, frame + 5, "<HH", width, height)


def webp_of(width: int, height: int) -> bytes:
    """Return an extended WebP, whose canvas has its own size."""
    picture_chunk = small("WEBP")[12:]
    canvas = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<I", 10) + b"\0\0\0\0" + canvas + picture_chunk
    return b"RIFF" + struct.pack("<I", len(body)) + body


def ico_of(inner: bytes) -> bytes:
    entry = struct.pack("<BBBBHHII", 32, 32, 0, 0, 1, 32, len(inner), 22)
    return struct.pack("<HHH", 0, 1, 1) + entry + inner


def tiff_of(width: int, height: int, *more: tuple[int, int, tuple[float, ...]]) -> bytes:
    size = [(256, 4, (width,)), (257, 4, (height,)), *more]
    data = tiff(np.zeros((4, 4, 1), np.uint8), 1)
    start = struct.unpack_from("<I", data, 4)[0]
    kept = data[start + 2 :]
    count = struct.unpack_from("<H", data, start)[0]
    old = [kept[12 * i : 12 * i + 12] for i in range(count)]
    tags = {tag: struct.pack("<HHII", tag, kind, 1, int(values[0])) for tag, kind, values in size}
    entries = {struct.unpack_from("<H", entry)[0]: entry for entry in old} | tags
    directory = b"".join(entries[tag] for tag in sorted(entries))
    return data[:start] + struct.pack("<H", len(entries)) + directory + b"\0\0\0\0"


def big_tiff_of(width: int, height: int) -> bytes:
    tags = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: 16}
    entries = b"".join(struct.pack("<HHQQ", tag, 4, 1, value) for tag, value in tags.items())
    return struct.pack("<2sHHHQQ", b"II", 43, 8, 0, 16, len(tags)) + entries + b"\0" * 8


def avif_of(width: int, height: int) -> bytes:
    data = small("AVIF")
    return patched(data, data.index(b"ispe") + 8, ">II", width, height)


def bombs() -> dict[str, bytes]:
    wide_png = png(50_000, 50_000, 8, 2, b"\0" * 1000)
    jp2 = small("JPEG2000", no_jp2=True)
    boxed = small("JPEG2000")
    lying_jp2 = patched(boxed, boxed.index(b"\xff\x4f\xff\x51") + 8, ">II", 50_000, 50_000)
    apng = png_chunk(b"acTL", struct.pack(">II", 2, 0)) + png_chunk(
        b"fcTL", struct.pack(">IIIIIHHBB", 0, 60_000, 60_000, 0, 0, 1, 1, 0, 0)
    )
    return {
        "png": wide_png,
        "png of 16 bits": png(50_000, 50_000, 16, 6, b"\0" * 1000),
        "png of 1 bit": png(500_000, 500_000, 1, 0, b"\0" * 1000),
        "png with alpha": png(50_000, 50_000, 8, 6, b"\0" * 1000),
        "png cut": wide_png[:40],
        "apng": png(60_000, 60_000, 8, 2, b"\0" * 1000, apng),
        "jpeg": jpeg_of(65_500, 65_500),
        "jpeg progressive": jpeg_of(50_000, 50_000, progressive=True),
        "jpeg wide": jpeg_of(65_500, 3_000),
        "jpeg cut": jpeg_of(65_500, 65_500)[:-20],
        "jpeg behind junk": jpeg_behind_junk(),
        "gif canvas": patched(small("GIF"), 6, "<HH", 65_535, 65_535),
        "gif frame": gif_frame(65_535, 65_535),
        "webp canvas": webp_of(16_384, 16_384),
        "webp canvas of all bits": webp_of(1 << 24, 1 << 24),
        "tiff": tiff_of(50_000, 50_000),
        "tiff rows": tiff_of(50_000, 50_000, (278, 4, (50_000,))),
        "tiff packed": tiff_of(50_000, 50_000, (259, 3, (5,))),
        "tiff big": big_tiff_of(50_000, 50_000),
        "tiff bigger": big_tiff_of(1 << 31, 1 << 31),
        "tiff tile": tiff_of(64, 64, (322, 4, (60_000,)), (323, 4, (60_000,)), (324, 4, (8,)), (325, 4, (16,))),
        "bmp": patched(small("BMP"), 18, "<ii", 50_000, 50_000),
        "ppm": b"P6 50000 50000 255\n" + b"\0" * 100,
        "pgm plain": b"P2 50000 50000 255\n" + b"0 " * 100,
        "tga": patched(small("TGA"), 12, "<HH", 65_535, 65_535),
        "ico png": ico_of(png(50_000, 50_000, 8, 6, b"\0" * 1000)),
        "ico bmp": ico_of(struct.pack("<IiiHHIIiiII", 40, 50_000, 100_000, 1, 32, 0, 0, 0, 0, 0, 0) + b"\0" * 99),
        "qoi": patched(small("QOI"), 4, ">II", 60_000, 60_000),
        "jpeg 2000": patched(jp2, 8, ">II", 50_000, 50_000),
        "jpeg 2000 boxed": lying_jp2,
        "avif": avif_of(50_000, 50_000),
        "dds": patched(small("DDS"), 12, "<II", 50_000, 50_000),
        "sgi": patched(small("SGI"), 6, ">HH", 60_000, 60_000),
        "pcx": patched(small("PCX"), 8, "<HH", 60_000, 60_000),
        "psd": struct.pack(">4sH6xHIIHH", b"8BPS", 1, 3, 30_000, 30_000, 8, 3) + b"\0" * 200,
        "xbm": b"#define a_width 60000\n#define a_height 60000\nstatic char a_bits[] = {\n0x00};\n",
        "sun": struct.pack(">8I", 0x59A66A95, 60_000, 60_000, 24, 0, 1, 0, 0) + b"\0" * 100,
    }


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, int]]:
    folder = tmp_path_factory.mktemp("bombs")
    (folder / "warm").write_bytes(small("GIF"))  # loads Pillow's readers
    for name, data in bombs().items():
        assert len(data) < 20_000
        (folder / f"bomb {name}").write_bytes(data)
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, tuple[str, int]] = json.loads(done.stdout)
    return found


SHORT_OF_MEMORY = """
import resource, sys
from pathlib import Path
from featurepress.errors import ImageError
from featurepress.images.decode import decode

images = [Path(name).read_bytes() for name in sys.argv[1:]]
decode(images[0])
held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (held + (200 << 20),) * 2)
for data in images[1:]:
    try:
        print(decode(data).shape)
    except ImageError as error:
        print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits address space, which only Linux does dependably")
def test_insufficient_memory_is_an_image_error(tmp_path: Path) -> None:
    side = 12_000  # 432 MB of pixels, within the limit of pixels
    images = {
        "small": small("PNG"),
        "opencv": png(side, side, 1, 0, (b"\0" + b"\xaa" * (side // 8)) * side),
        "pillow": png(side, side, 8, 6, (b"\0" * (4 * side + 1)) * 10),
    }
    for name, data in images.items():
        (tmp_path / name).write_bytes(data)
    done = subprocess.run(
        [sys.executable, "-c", SHORT_OF_MEMORY, *(str(tmp_path / name) for name in images)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.splitlines() == ["decode: not enough memory to decode it"] * 2, done.stderr[-2000:]


# Their header is not ours to trust: the true size is inside, and what is inside is what refuses them.
UNCLEAR = ("png cut", "jpeg 2000 boxed", "avif")


@pytest.mark.parametrize("name", bombs())
def test_a_bomb_is_refused_and_memory_stays_flat(name: str, answers: dict[str, tuple[str, int]]) -> None:
    answer, growth = answers[name]
    assert answer.startswith("decode: "), answer
    assert name in UNCLEAR or "above the limit of 178956970 (--max-pixels)" in answer
    assert growth < 8 << 20


# Large images take turns


def large_png() -> bytes:
    width, height = 4096, LARGE_PIXELS // 4096 + 1
    return png(width, height, 1, 0, (b"\0" + b"\xaa" * (width // 8)) * height)


def test_large_images_wait_for_each_other() -> None:
    data, done = large_png(), threading.Event()

    def work() -> None:
        decode(data)
        done.set()

    thread = threading.Thread(target=work)
    with one_at_a_time():
        thread.start()
        assert not done.wait(0.5)
        assert decode(small("PNG")).size  # a small one does not wait
    thread.join(30)
    assert done.is_set()


def test_the_lock_of_a_killed_process_is_released() -> None:
    code = (
        "import time; from featurepress.images.decode import one_at_a_time\n"
        "with one_at_a_time():\n    print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        holder.kill()
        assert decode(large_png())[0, :2, 0].tolist() == [255, 0]
