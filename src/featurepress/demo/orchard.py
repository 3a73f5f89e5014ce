"""Draw an orchard of fruit images: data for the first run, for tests and for benchmarks."""

from __future__ import annotations

import difflib
import json
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from featurepress.demo.fruit import KINDS, RECIPES, Pixels, Rng, grid, lay, noise, pick_light, render
from featurepress.errors import DestinationError, SettingError, StorageError

__all__ = ["KINDS", "Orchard", "Scene", "draw_fruit", "draw_images", "draw_orchard", "draw_scene"]

Box = tuple[int, int, int, int]
BACKGROUND = "background"  # the label that predict never writes

_MARKER = ".featurepress-orchard"  # lists the files, so that a new call replaces only these; sources skip dot files
_DISTINCT = 24 * len(KINDS)  # images that draw_images really draws; the others are variations of these


def _require(least: int, **settings: object) -> None:
    """Raise SettingError unless each setting is an integer of at least `least`."""
    for name, value in settings.items():
        if type(value) is not int or value < least:
            raise SettingError(f"The '{name}' setting must be an integer of at least {least}. Got {value!r}.")


def _generator(random_state: int | Rng) -> Rng:
    if isinstance(random_state, Rng):
        return random_state
    _require(0, random_state=random_state)
    return np.random.default_rng(random_state)


def _require_kind(kind: str) -> None:
    if kind not in RECIPES:
        near = difflib.get_close_matches(kind.title(), KINDS) or KINDS
        raise SettingError(f"There is no kind of fruit '{kind}'. Choose {', '.join(near)}.")


def draw_fruit(kind: str, *, random_state: int | Rng, image_size_px: int = 100) -> Pixels:
    """Draw one fruit on white: array (image_size_px, image_size_px, 3) uint8, RGB.

    `kind` is one of `KINDS`. `random_state` determines pose, size, light and skin; the same integer draws the same
    image. The size is at least 16, by default 100, as in Fruits-360. SettingError for an unknown kind or a smaller
    size. About 1 ms for 100 pixels; time grows with the area.
    """
    _require_kind(kind)
    _require(16, image_size_px=image_size_px)
    rng = _generator(random_state)
    light = pick_light(rng)
    pixels = np.full((image_size_px, image_size_px, 3), 255, np.uint8)
    lay(pixels, render(kind, rng, side_px=image_size_px, fill=rng.uniform(0.82, 0.96), light=light), light)
    return pixels


@dataclass(frozen=True)
class Scene:
    """Several fruits on one background: array (H, W, 3) uint8, RGB.

    `fruits` are pairs of kind and box (left, top, right, bottom) in pixels, right and bottom exclusive. The box
    encloses the whole fruit, also if a later one covers part of it.
    """

    pixels: Pixels
    fruits: tuple[tuple[str, Box], ...]


def _overlaps(boxes: NDArray[np.int64], laid: list[Box]) -> NDArray[np.float64]:
    """Return the largest overlap of each of `boxes`, (n, 4), with one in `laid`, as a share of the smaller box."""
    worst = np.zeros(len(boxes))
    for other in np.array(laid, np.int64).reshape(-1, 4):
        common = np.minimum(boxes[:, 2:], other[2:]) - np.maximum(boxes[:, :2], other[:2])
        smaller = np.minimum((boxes[:, 2:] - boxes[:, :2]).prod(axis=1), (other[2:] - other[:2]).prod())
        worst = np.maximum(worst, np.maximum(common, 0).prod(axis=1) / smaller)
    return worst


def draw_scene(kinds: Iterable[str], *, random_state: int | Rng, image_size_px: int = 384) -> Scene:
    """Draw several fruits side by side, overlapping a little, on a table in one light.

    The fruits are laid down in the order of `kinds`, which may repeat a kind; `random_state` determines the rest.
    The size is at least 64, by default 384, four images of 96 pixels across. SettingError as for `draw_fruit`.
    """
    _require(64, image_size_px=image_size_px)
    rng, kinds = _generator(random_state), list(kinds)
    light, side = pick_light(rng), image_size_px
    tone = rng.uniform(170, 235) + rng.normal(0, 9, 3) + 7 * noise(side, 5, rng)[:, :, None]
    ground = np.clip(tone + 25 * light[1] * grid(side)[1][:, :, None], 0, 255).astype(np.uint8)
    fruits: list[tuple[str, Box]] = []
    for kind in kinds:
        _require_kind(kind)
        extent = round(side * RECIPES[kind].size * rng.uniform(0.36, 0.42) * min(1, (3 / len(kinds)) ** 0.5))
        fruit = render(kind, rng, side_px=extent, fill=0.8, light=light)
        left, top, width, height = cv2.boundingRect((fruit[:, :, 3] > 127).astype(np.uint8))
        corners = rng.integers(0, side - extent + 1, (60, 2))
        low = np.add(corners, (left, top))
        overlap = _overlaps(np.hstack([low, np.add(low, (width, height))]), [box for _, box in fruits])
        # The first position with little overlap; on a full table the one with the least.
        best = int(np.argmin(np.maximum(overlap, 0.1)))
        x, y = corners[best]
        lay(ground[y : y + extent, x : x + extent], fruit, light)
        x, y = low[best].tolist()
        fruits.append((kind, (x, y, x + width, y + height)))
    return Scene(ground, tuple(fruits))


@dataclass(frozen=True)
class Orchard:
    """The folder that `draw_orchard` drew, with its numbers of valid images, scenes and broken files."""

    folder: Path
    images: int
    scenes: int
    broken: int


def _jpeg(pixels: Pixels) -> bytes:
    return cv2.imencode(".jpg", pixels[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes()


def _fruit_files(images_per_kind: int, random_state: int, *, odd_name: bool) -> Iterator[tuple[str, bytes]]:
    for number, kind in enumerate(KINDS):
        for i in range(images_per_kind):
            split = "Test" if i % 4 == 3 else "Training"
            name = "fr\u00fche Zitrone \u67e0\u6aac" if odd_name and (kind, i) == ("Lemon", 0) else f"{i:04d}"
            pixels = draw_fruit(kind, random_state=np.random.default_rng([random_state, number, i]))
            yield f"{split}/{kind}/{name}.jpg", _jpeg(pixels)


def _scene_files(scenes: int, random_state: int) -> Iterator[tuple[str, bytes]]:
    truth = {}
    for i in range(scenes):
        rng = np.random.default_rng([random_state, len(KINDS), i])
        scene = draw_scene(rng.choice(KINDS, rng.integers(2, 6), replace=False).tolist(), random_state=rng)
        name = "-".join(kind.lower().replace(" ", "_") for kind, _ in scene.fruits) + f"-{i:02d}.jpg"
        truth[name] = [{"kind": kind, "box": box} for kind, box in scene.fruits]
        yield f"test-multiple_fruits/{name}", _jpeg(scene.pixels)
    yield "test-multiple_fruits/boxes.json", json.dumps(truth, indent=1).encode()


def _background_files(backgrounds: int, random_state: int) -> Iterator[tuple[str, bytes]]:
    """Draw pieces of the empty tables of scenes, 60 to 199 pixels wide and high."""
    for i in range(backgrounds):
        rng = np.random.default_rng([random_state, len(KINDS) + 1, i])
        table = draw_scene([], random_state=rng).pixels
        side = int(rng.integers(60, 200))
        x, y = rng.integers(0, len(table) - side, 2).tolist()
        yield f"Training/{BACKGROUND}/{i:04d}.jpg", _jpeg(table[y : y + side, x : x + side])


def _broken_files() -> Iterator[tuple[str, bytes]]:
    def chunk(tag: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + tag + data + struct.pack(">I", zlib.crc32(tag + data))

    plum = _jpeg(draw_fruit("Plum", random_state=0))
    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    yield "Test/Apple Red/empty.jpg", b""
    yield "Test/Plum/truncated.jpg", plum[: len(plum) // 2]
    yield "Training/Banana/shopping list.jpg", b"6 bananas, 1 pineapple, 200 g raspberries\n"
    bomb = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    yield "Test/Watermelon/enormous.png", b"\x89PNG\r\n\x1a\n" + bomb


def _prepare(folder: Path) -> None:
    """Remove the files of an earlier call; refuse a folder that holds something else."""
    marker = folder / _MARKER
    try:
        folder.mkdir(parents=True, exist_ok=True)
        foreign = None if marker.exists() else next(folder.iterdir(), None)
    except OSError as error:
        raise DestinationError(f"Cannot draw into '{folder}': {error.strerror}. Choose another folder.") from error
    if foreign is not None:
        raise DestinationError(
            f"The folder of an orchard must be new, empty or drawn by an earlier call. Got '{folder}', which holds "
            f"'{foreign.name}'. Choose another folder."
        )
    for name in marker.read_text("utf-8").splitlines() if marker.exists() else ():
        if (drawn := (folder / name).resolve()).is_relative_to(folder.resolve()):
            drawn.unlink(missing_ok=True)
    marker.unlink(missing_ok=True)


def _write(root: Path, files: Iterable[tuple[str, bytes]]) -> None:
    try:
        with (root / _MARKER).open("w", buffering=1, encoding="utf-8") as marker:
            for name, content in files:
                # Listed before it is written, so that the next call can remove what an interrupted one has left.
                marker.write(f"{name}\n")
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                (root / name).write_bytes(content)
    except OSError as error:
        raise StorageError(f"Cannot write {error.filename or root}: {error.strerror}. Draw again.") from error


def draw_orchard(
    folder: str | Path,
    *,
    images_per_kind: int = 40,
    scenes: int = 12,
    backgrounds: int = 0,
    broken: bool = True,
    random_state: int = 0,
) -> Orchard:
    """Draw a folder like Fruits-360: `Training/<Kind>/`, `Test/<Kind>/` and `test-multiple_fruits/`.

    Parameters
    ----------
    folder : str or Path
        New, empty, or drawn by an earlier call, whose files are then replaced.
    images_per_kind : int
        Images of 100 x 100 pixels of each kind, every fourth in `Test`; 40 by default, enough for training.
    scenes : int
        Images of 2 to 5 fruits; `boxes.json` beside them has the kind and box of each. 12 by default.
    backgrounds : int
        Images of empty tables, in `Training/background/`; none by default. A model trained on them predicts fewer
        fruits where there are none.
    broken : bool
        Add four files that cannot be decoded, and name one valid image with spaces and letters beyond ASCII.
    random_state : int
        The same number draws the same bytes.

    Raises
    ------
    SettingError
        A number is not allowed.
    DestinationError
        The folder holds something else, or cannot be created.
    StorageError
        Writing failed; the next call removes the files that exist.
    """
    _require(1, images_per_kind=images_per_kind)
    _require(0, scenes=scenes, backgrounds=backgrounds, random_state=random_state)
    root = Path(folder)
    _prepare(root)
    bad = dict(_broken_files()) if broken else {}
    fruits = _fruit_files(images_per_kind, random_state, odd_name=broken)
    empty = _background_files(backgrounds, random_state)
    _write(root, chain(fruits, empty, _scene_files(scenes, random_state), bad.items()))
    return Orchard(root, len(KINDS) * images_per_kind + backgrounds, scenes, len(bad))


def _vary(pixels: Pixels, rng: Rng) -> Pixels:
    """Rotate, shrink and fade an image on white, which takes a tenth of the time of drawing another."""
    side = len(pixels)
    turn = cv2.getRotationMatrix2D((side / 2, side / 2), rng.uniform(0, 360), rng.uniform(0.8, 1.0))
    turned = cv2.warpAffine(pixels, turn, (side, side), borderValue=(255, 255, 255))
    gain = rng.uniform(0.8, 1.0)
    return np.asarray(cv2.convertScaleAbs(turned, alpha=gain, beta=255 * (1 - gain)), np.uint8)


def draw_images(folder: str | Path, n: int, *, image_size_px: int = 100, random_state: int = 0) -> list[Path]:
    """Write many fruit images fast, for tests and benchmarks, as `<Kind>/<number>.jpg`; return their paths.

    No two have the same bytes: the first few hundred are drawn, the others vary these. Files of the same names are
    replaced. `image_size_px` and `random_state` are as for `draw_fruit`.
    """
    _require(0, n=n)
    rng, originals, seen = _generator(random_state), list[Pixels](), set[int]()
    paths = [Path(folder) / KINDS[i % len(KINDS)] / f"{i:06d}.jpg" for i in range(n)]
    for i, path in enumerate(paths):
        if i < _DISTINCT:
            path.parent.mkdir(parents=True, exist_ok=True)
            originals.append(draw_fruit(path.parent.name, random_state=rng, image_size_px=image_size_px))
        content = _jpeg(originals[i] if i < _DISTINCT else _vary(originals[i % _DISTINCT], rng))
        while (checksum := zlib.crc32(content)) in seen:
            content = _jpeg(_vary(originals[i % _DISTINCT], rng))
        seen.add(checksum)
        path.write_bytes(content)
    return paths
