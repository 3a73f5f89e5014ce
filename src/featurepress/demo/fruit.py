"""Draw one fruit: form, skin, light.

A fruit is drawn upright on a canvas of twice its final size, then rotated and shrunk, which smooths its edges. A
recipe has its form (a surface with normals: a round body, a crescent or a bunch), its skin, and its stems and
leaves. The same seed draws the same bytes on one machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Plane = NDArray[np.float32]
Point = tuple[float, float]
Rng = np.random.Generator

_TURNS = 1024  # steps of the full circle in angle tables: half a pixel at the rim of a 200-pixel canvas


class _Surface(NamedTuple):
    """Maps (side, side): the unit normal, coverage from 0 to 1, and the tone of a banana or of berries, else 0."""

    nx: Plane
    ny: Plane
    nz: Plane
    alpha: Plane
    tone: Plane


@dataclass(frozen=True)
class _Recipe:
    """How a kind is drawn; palette positions run from 0 (first colour) to 1 (last)."""

    form: Callable[[Rng, int], _Surface]
    palette: tuple[str, ...]
    mottling: tuple[float, float, float]  # palette position, weights of coarse and of medium noise
    pattern: Callable[[_Surface, Rng], Plane] | None = None  # added to the palette position
    blush: float = 0.0  # palette shift towards one side of the fruit
    speckle: float = 0.0  # palette shift of small spots
    gloss: float = 0.3  # height of the highlight, 1 is white
    shine: int = 4  # the highlight's exponent is 2 ** shine
    bump: float = 0.0  # depth of the skin's grain in the light
    relief: float = 1.0  # 1 is a ball, 0 a flat cut
    tilt: float = 30.0  # maximum rotation to either side, in degrees
    size: float = 1.0  # relative to other fruits in a scene
    # Stems and leaves: base, directions in degrees from up, length and width in canvas units, colour.
    shoots: tuple[tuple[Point, tuple[float, ...], float, float, str], ...] = ()


@lru_cache(maxsize=8)
def grid(side: int) -> tuple[Plane, Plane, NDArray[np.intp]]:
    """Return coordinates (the canvas is 2 wide, y down, zero in the middle of bodies), and angle steps from up."""
    axis = (np.arange(side, dtype=np.float32) + 0.5) * (2.0 / side) - 1.0
    x, y = np.meshgrid(axis, axis - np.float32(0.12))
    return x, y, (np.arctan2(x, -y) * (_TURNS / (2 * np.pi))).astype(np.intp) % _TURNS


@lru_cache(maxsize=32)
def _noise_pool(side: int, cells: int) -> Plane:
    seeds = np.random.default_rng(cells).normal(size=(2 * cells, 2 * cells)).astype(np.float32)
    return np.asarray(cv2.resize(seeds, (2 * side, 2 * side), interpolation=cv2.INTER_CUBIC), dtype=np.float32)


def noise(side: int, cells: int, rng: Rng) -> Plane:
    """Cut (side, side) out of a table of smooth noise, roughly normal, with `cells` blobs across."""
    top, left = rng.integers(0, side, 2)
    return _noise_pool(side, cells)[top : top + side, left : left + side]


def _plane(values: NDArray[np.floating]) -> Plane:
    return np.asarray(values, np.float32)


def _round(rng: Rng, side: int, *, radii: tuple[float, ...]) -> _Surface:
    """Inflate an outline, whose radii are at equal steps from the top down one side."""
    x, y, turn = grid(side)
    ring = np.interp(np.linspace(0, len(radii) - 1, _TURNS // 2), np.arange(len(radii)), radii)
    window = np.hanning(_TURNS // len(radii) // 2)
    ring = np.convolve(np.tile([*ring, *ring[::-1]], 3), window / window.sum(), mode="same")[_TURNS : 2 * _TURNS]
    angle, phase = np.linspace(0, 2 * np.pi, _TURNS), rng.uniform(0, 2 * np.pi, 2)
    ring *= 1 + rng.normal(0, 0.012, 2) @ [np.cos(2 * angle + phase[0]), np.cos(3 * angle + phase[1])]
    inverse = (1 / ring).astype(np.float32)[turn]
    nx, ny = x * inverse, y * inverse
    squared = nx * nx + ny * ny
    alpha = np.clip((1 - squared) * np.float32(side * 0.2), 0, 1)
    return _Surface(nx, ny, np.sqrt(np.maximum(1 - squared, 0)), alpha, np.zeros((1, 1), np.float32))


_BANANA_WIDTH = (0.05, 0.055, 0.075, 0.15, 0.2, 0.22, 0.23, 0.23, 0.225, 0.21, 0.17, 0.1, 0.04)
_BANANA_TONE = (0.05, 0.42, 0.5, 0.64, 0.74, 0.8, 0.82, 0.82, 0.8, 0.76, 0.66, 0.5, 0.0)


def _crescent(rng: Rng, side: int) -> _Surface:
    x, y = grid(side)[0], grid(side)[1] + 1
    radius = np.hypot(x, y)
    swing = np.arctan2(x, y) * np.float32(1 / 1.66)
    along = (np.clip(swing + 0.5, 0, 1) * (_TURNS - 1)).astype(np.intp)
    knots, steps = np.linspace(0, 1, len(_BANANA_WIDTH)), np.linspace(0, 1, _TURNS)
    breadth = np.interp(steps, knots, _BANANA_WIDTH) * rng.uniform(0.85, 1.1) + 1e-3
    width = breadth.astype(np.float32)[along]
    across = (radius - 1) / width
    alpha = np.clip(np.minimum((1 - np.abs(across)) * width, 0.8 - 1.6 * np.abs(swing)) * (side * 0.5), 0, 1)
    across = np.clip(across, -1, 1)
    # A banana has edges: its faces are flatter than those of a tube.
    facing = np.clip(across + 0.16 * np.sin(6.5 * across + np.float32(rng.uniform(-0.5, 0.5))), -1, 1)
    tone = np.interp(steps, knots, _BANANA_TONE).astype(np.float32)[along]
    nx, ny = facing * x / radius, facing * y / radius
    return _Surface(_plane(nx), _plane(ny), np.sqrt(1 - facing * facing), _plane(alpha), tone)


def _bunch(rng: Rng, side: int, *, rows: tuple[int, ...], radius: float, pitch: Point, loose: float) -> _Surface:
    """Lay berries in rows from the top down, the outer ones behind."""
    reach = round(radius * rng.uniform(0.94, 1.06) * side / 2)
    axis = (np.arange(2 * reach, dtype=np.float32) + 0.5) / reach - 1
    nx, ny = np.meshgrid(axis, axis)
    depth = np.maximum(1 - nx * nx - ny * ny, 0)
    ball = np.stack([nx, ny, np.sqrt(depth), np.minimum(depth * (reach * 0.5), 1)])
    seats = [
        ((c - (n - 1) / 2) * pitch[0], (r - (len(rows) - 1) / 2) * pitch[1] + 0.12, 0.0)
        for r, n in enumerate(rows)
        for c in range(n)
    ]
    berries = np.array(seats) + rng.normal(0, (loose * radius, loose * radius, 0.1), (len(seats), 3))
    maps = np.zeros((5, side, side), np.float32)
    for x, y, tone in berries[np.argsort(-np.abs(berries[:, 0]) + rng.normal(0, loose, len(seats)))]:
        left, top = (int(np.clip((v + 1) * side / 2 - reach, 0, side - 2 * reach)) for v in (x, y))
        target = maps[:, top : top + 2 * reach, left : left + 2 * reach]
        # The whole bunch is round too, so the outer berries face outwards.
        fresh = ball[:3] + np.array([[[0.4 * x]], [[0.4 * y]], [[0]]], np.float32)
        np.copyto(target[:3], fresh, where=ball[3] > 0.5)
        np.copyto(target[4], np.float32(tone), where=ball[3] > 0.5)
        np.maximum(target[3], ball[3], out=target[3])
    maps[:3] /= np.sqrt(np.maximum((maps[:3] * maps[:3]).sum(axis=0), 1e-6))
    return _Surface(*maps)


def _triangle(values: NDArray[np.floating]) -> Plane:
    """Return a triangle wave from 0 to 1 with period 1: much faster than a sine."""
    return _plane(np.abs(values - np.rint(values)) * 2)


def _longitude(s: _Surface, rng: Rng, *, spin: float = 0.5) -> Plane:
    """Return radians around the upright axis, rotated by up to `spin`."""
    across = np.clip(s.nx / np.sqrt(np.maximum(1 - s.ny * s.ny, 0.04)), -1, 1)
    return _plane(np.arcsin(across) + np.float32(rng.uniform(-spin, spin)))


def _streaks(s: _Surface, rng: Rng, *, weight: float, hollow: float) -> Plane:
    """Return fine lines from pole to pole, and the dark hollow around the stem."""
    around = ((_longitude(s, rng, spin=0) + 1.6) * 79).astype(np.intp)
    depth = 1 / (1 + s.nx * s.nx * 9 + (s.ny + np.float32(0.8)) ** 2 * 60)
    return _plane(weight * noise(256, 64, rng)[0][around] - hollow * depth)


def _crease(s: _Surface, rng: Rng) -> Plane:
    groove = _longitude(s, rng) * 9
    return _plane(-0.35 / (1 + groove * groove))


def _stripes(s: _Surface, rng: Rng) -> Plane:
    wave = _triangle(_longitude(s, rng) * 1.9 + 0.1 * noise(len(s.nx), 24, rng))
    return _plane(0.55 * np.clip((wave - 0.45) * 4, 0, 1))


def _lattice(s: _Surface, rng: Rng, *, turns: Point, eye: float, pit: float, spot: float) -> Plane:
    """Return cells in diagonal rows around the ball, `spot` lighter in their middle and `pit` darker around it."""
    around, down = _longitude(s, rng) * turns[0], np.arcsin(np.clip(s.ny, -1, 1)) * turns[1]
    middle = np.minimum(_triangle(around + down), _triangle(around - down)) - eye
    return _plane(spot * np.clip(middle * 8, 0, 1) - pit * np.clip(1 - np.abs(middle + 0.16) * 5, 0, 1))


_KIWI_RINGS = (
    (0, 0.2, 0.3, 0.55, 0.8, 0.9, 0.935, 0.955, 1),
    (0.97, 0.93, 0.72, 0.58, 0.5, 0.6, 0.62, 0.2, 0.15),
)


def _cut(s: _Surface, rng: Rng) -> Plane:
    """Return rings, rays and seeds of a kiwi cut in half."""
    outward = np.sqrt(s.nx * s.nx + s.ny * s.ny)
    rings = np.interp(np.linspace(0, 1, 256), *_KIWI_RINGS).astype(np.float32)
    turn = grid(len(s.nx))[2]
    rays = np.resize(noise(_TURNS // 2, 48, rng)[0], _TURNS)[turn] * np.clip(1 - np.abs(outward - 0.55) * 3, 0, 1)
    around = (turn * (17 / _TURNS) + rng.uniform()).astype(np.float32)
    # The seeds alternate between two rings.
    ring = np.float32(0.38) + np.float32(0.06) * (np.floor(around) % 2)
    seeds = np.clip(_triangle(around) * 6 - 3 - (np.abs(outward - ring) * 19) ** 2, 0, 1)
    return _plane(rings[np.minimum(outward * 255, 255).astype(np.intp)] + np.float32(0.09) * rays - 2 * seeds)


def _tone(s: _Surface, rng: Rng) -> Plane:
    return s.tone


_APPLE = partial(_round, radii=(0.58, 0.70, 0.79, 0.81, 0.80, 0.77, 0.73, 0.69, 0.62))
_LEMON = (0.94, 0.86, 0.75, 0.71, 0.66, 0.62, 0.59, 0.58, 0.59, 0.62, 0.66, 0.71, 0.75, 0.82, 0.9)
_PEAR = (0.8, 0.76, 0.65, 0.54, 0.5, 0.51, 0.55, 0.6, 0.64, 0.67, 0.69, 0.7, 0.7, 0.68, 0.65)
_LEAF, _BARK, _BLADE = "#528c30", "#68482a", "#5c8248"
_APPLE_STEM = ((0.0, -0.44), (8.0,), 0.42, 0.025, _BARK)
_CALYX = (-115.0, -80.0, -45.0, -10.0, 25.0, 60.0, 100.0)
_CROWN = (-66.0, 66.0, -44.0, 44.0, -22.0, 22.0, 0.0)

# fmt: off
RECIPES: dict[str, _Recipe] = {
    "Apple Green": _Recipe(
        _APPLE, ("#3c5a12", "#7fa22c", "#a9c44a", "#c9d873", "#e6e9a6"), (0.52, 0.06, 0.02),
        partial(_streaks, weight=0.02, hollow=0.5), blush=0.08, speckle=0.5, shoots=(_APPLE_STEM,)),
    "Apple Red": _Recipe(
        _APPLE, ("#3d0710", "#8f1320", "#c02a2c", "#d8653a", "#ecc565"), (0.42, 0.1, 0.04),
        partial(_streaks, weight=0.1, hollow=0.35), blush=0.14, speckle=0.3, gloss=0.5, shine=5,
        shoots=(_APPLE_STEM, ((0.03, -0.66), (62.0,), 0.42, 0.12, _LEAF))),
    "Banana": _Recipe(
        _crescent, ("#2a1a0e", "#6b4a1c", "#9ea23c", "#e6c83e", "#f9e27a"), (0.0, 0.03, 0.01), _tone,
        speckle=-1.2, gloss=0.2, shine=3, tilt=70, size=1.2),
    "Cherry": _Recipe(
        partial(_bunch, rows=(2,), radius=0.4, pitch=(0.74, 0.0), loose=0.08),
        ("#2a0208", "#6d0a18", "#a81426", "#cf3340"), (0.45, 0.08, 0.0), _tone, gloss=0.85, shine=6,
        size=0.65,
        shoots=(((-0.36, -0.2), (32.0,), 0.86, 0.02, _BARK), ((0.37, -0.2), (-20.0,), 0.78, 0.02, _BARK),
                ((0.1, -0.9), (105.0,), 0.6, 0.14, _LEAF))),
    "Grape": _Recipe(
        partial(_bunch, rows=(3, 4, 5, 4, 3, 2, 1), radius=0.2, pitch=(0.3, 0.22), loose=0.15),
        ("#120d22", "#2b2148", "#4a3f74", "#8688b4"), (0.42, 0.12, 0.06), _tone, gloss=0.4, shine=5,
        shoots=(((0.0, -0.5), (6.0,), 0.45, 0.025, _BARK),
                ((0.0, -0.6), (62.0, 86.0, 110.0), 0.55, 0.13, _LEAF))),
    "Kiwi": _Recipe(
        partial(_round, radii=(0.76, 0.78, 0.81, 0.78, 0.76)),
        ("#1c130b", "#74522e", "#3f7420", "#74ab2c", "#a9d04e", "#eef0c4"), (0.0, 0.01, 0.02), _cut,
        gloss=0.1, shine=3, relief=0.2, tilt=180, size=0.85),
    "Lemon": _Recipe(
        partial(_round, radii=_LEMON),
        ("#8f8a12", "#d8bf1e", "#f4dc3a", "#fbec7c"), (0.6, 0.05, 0.02), bump=0.05, tilt=100, size=0.85),
    "Orange": _Recipe(
        partial(_round, radii=(0.77, 0.79, 0.8, 0.81, 0.82, 0.81, 0.8, 0.79, 0.77)),
        ("#8a3c04", "#e07708", "#f7931a", "#ffb347"), (0.52, 0.08, 0.02), bump=0.08,
        shoots=(((0.0, -0.5), (-70.0, -10.0, 50.0, 130.0, 200.0), 0.1, 0.04, _LEAF),)),
    "Pear": _Recipe(
        partial(_round, radii=_PEAR),
        ("#5f4a1e", "#a08a34", "#bdb84a", "#d8cf68", "#eee49a"), (0.62, 0.08, 0.03), blush=-0.16,
        speckle=-0.6, shoots=(((0.0, -0.62), (14.0,), 0.36, 0.025, _BARK),)),
    "Pineapple": _Recipe(
        partial(_round, radii=(0.52, 0.56, 0.56, 0.5, 0.47, 0.5, 0.58, 0.62, 0.6)),
        ("#4a2c0c", "#94611a", "#cf952c", "#ecc04e", "#b8a24a"), (0.5, 0.06, 0.04),
        partial(_lattice, turns=(1.5, 1.9), eye=0.3, pit=0.5, spot=0.2), gloss=0.15, shine=3, bump=0.04,
        tilt=25, size=1.3,
        shoots=(((0.0, -0.3), _CROWN, 0.62, 0.075, _BLADE), ((0.0, -0.3), _CROWN, 0.38, 0.075, _BLADE))),
    "Plum": _Recipe(
        partial(_round, radii=(0.76, 0.75, 0.71, 0.66, 0.64, 0.66, 0.71, 0.76, 0.78)),
        ("#1a0c26", "#42204a", "#66305e", "#86649a", "#b4accc"), (0.46, 0.16, 0.08), _crease, gloss=0.25,
        tilt=80, size=0.8, shoots=(((0.0, -0.6), (10.0,), 0.22, 0.02, _BARK),)),
    "Raspberry": _Recipe(
        partial(_bunch, rows=(4, 5, 6, 6, 5, 5, 4, 3, 2), radius=0.14, pitch=(0.19, 0.14), loose=0.08),
        ("#5e0a20", "#b01c3e", "#d83f5e", "#f08a9a"), (0.5, 0.06, 0.03), _tone, gloss=0.25, size=0.65,
        shoots=(((0.0, -0.52), _CALYX, 0.3, 0.07, _LEAF),)),
    "Strawberry": _Recipe(
        partial(_round, radii=(0.5, 0.58, 0.66, 0.65, 0.61, 0.58, 0.59, 0.66, 0.74)),
        ("#5c0410", "#b00f1c", "#d8222a", "#ea5440", "#f6dc7c"), (0.46, 0.06, 0.03),
        partial(_lattice, turns=(2.2, 2.9), eye=0.72, pit=0.24, spot=0.6), gloss=0.5, size=0.75,
        shoots=(((0.0, -0.42), (8.0,), 0.4, 0.022, _LEAF), ((0.0, -0.4), _CALYX, 0.38, 0.1, _LEAF))),
    "Watermelon": _Recipe(
        partial(_round, radii=(0.64, 0.66, 0.71, 0.79, 0.84, 0.79, 0.71, 0.66, 0.64)),
        ("#12301a", "#1f4a24", "#3f7a35", "#7fae56", "#b4cf83"), (0.16, 0.04, 0.05), _stripes, tilt=60,
        size=1.45),
}
# fmt: on

KINDS: tuple[str, ...] = tuple(RECIPES)
"""The kinds of fruit: also the names of their folders, and so their labels."""


def _rgb(colour: str) -> tuple[float, ...]:
    return tuple(float(c) for c in bytes.fromhex(colour[1:]))


def pick_light(rng: Rng) -> NDArray[np.float64]:
    """Return a random direction to a lamp above, a unit vector: x right, y down, z towards the eye."""
    way = np.array([rng.uniform(-0.7, 0.7), rng.uniform(-0.8, -0.3), rng.uniform(0.7, 1.0)])
    return np.asarray(way / np.linalg.norm(way))


def _pigment(s: _Surface, recipe: _Recipe, rng: Rng) -> Pixels:
    """Return the palette position of each pixel, from 0 to 255."""
    side, (base, coarse, middle) = len(s.nx), recipe.mottling
    position = coarse * noise(side, 5, rng) + middle * noise(side, 20, rng) + np.float32(base)
    if recipe.pattern is not None:
        position += recipe.pattern(s, rng)
    if recipe.blush:
        way = rng.uniform(0, 2 * np.pi)
        position += (
            np.float32(recipe.blush * math.cos(way)) * s.nx + np.float32(recipe.blush * math.sin(way)) * s.ny
        )
    if recipe.speckle:
        position += np.float32(recipe.speckle) * np.clip(noise(side, 60, rng) - 1.3, 0, 0.5)
    return (np.clip(position, 0, 1) * 255).astype(np.uint8)


def _paint(s: _Surface, recipe: _Recipe, light: NDArray[np.float64], rng: Rng) -> Pixels:
    """Return the body, lit by Lambert with a Blinn highlight and a darker rim: RGBA premultiplied, uint8."""
    stops = np.array([_rgb(c) for c in recipe.palette])
    ramp = [np.interp(np.linspace(0, 1, 256), np.linspace(0, 1, len(stops)), stops[:, c]) for c in range(3)]
    ramp *= rng.normal(1, 0.04, (3, 1)) * rng.uniform(0.9, 1.12)
    lx, ly, lz = (light * (recipe.relief, recipe.relief, 1)).astype(np.float32)
    shade = np.maximum(s.nx * lx + s.ny * ly + s.nz * lz, 0) * np.float32(0.72) + np.float32(0.42)
    if recipe.bump:
        grain = noise(len(s.nx), 60, rng)
        # The grain is brighter where it rises towards the lamp: a difference along the light is enough.
        shade[2:, 2:] += np.float32(recipe.bump) * (grain[2:, 2:] - grain[:-2, :-2])
    shade *= (1 - np.float32(0.34 * recipe.relief)) + np.float32(0.34 * recipe.relief) * s.nz
    between = np.add(light, (0, 0, 1))  # halfway from the lamp to the eye
    hx, hy, hz = (between / np.linalg.norm(between)).astype(np.float32)
    glint = np.maximum(s.nx * hx + s.ny * hy + s.nz * hz, 0)
    for _ in range(recipe.shine):
        glint *= glint
    glint *= np.float32(255 * recipe.gloss)
    index = _pigment(s, recipe, rng)
    planes = [(cv2.LUT(index, tone.astype(np.float32)) * shade + glint) * s.alpha for tone in ramp]
    return np.clip(cv2.merge([*planes, s.alpha * 255]), 0, 255).astype(np.uint8)


def _draw_shoots(canvas: Pixels, recipe: _Recipe, rng: Rng) -> None:
    """Draw stems and leaves over the body, each as a bright and a dark half along a bent spine."""
    t = np.linspace(0, 1, 9)[:, None]
    for base, degrees, length, width, colour in recipe.shoots:
        # Stems keep their width; leaves are pointed at both ends.
        profile = np.sin(np.pi * t**0.8) if width > 0.03 else 1 + 0.5 * t
        for turn in np.radians(np.add(degrees, rng.normal(0, 6, len(degrees)))):
            ahead, across = (
                np.array([math.sin(turn), -math.cos(turn)]),
                np.array([math.cos(turn), math.sin(turn)]),
            )
            reach = length * rng.uniform(0.88, 1.08)
            spine = base + reach * (t * ahead + rng.normal(0, 0.15) * t * (1 - t) * across)
            for half, shade in ((-1, 1.1), (1, 0.8)):
                outline = np.concatenate([spine, (spine + half * width * profile * across)[::-1]])
                fill = np.minimum(np.multiply(_rgb(colour), shade * rng.uniform(0.9, 1.1)), 255).tolist()
                # OpenCV draws with fixed-point coordinates, here with 4 fractional bits.
                fixed = ((outline + 1) * (len(canvas) * 8)).astype(np.int32)
                cv2.fillPoly(canvas, [fixed], (*fill, 255), cv2.LINE_AA, 4)


def render(kind: str, rng: Rng, *, side_px: int, fill: float, light: NDArray[np.float64]) -> Pixels:
    """Return a fruit in the middle, its longer side `fill` of the image: RGBA premultiplied, (H, W, 4) uint8."""
    recipe = RECIPES[kind]
    tilt = math.radians(rng.uniform(-recipe.tilt, recipe.tilt))
    turn = np.array([[math.cos(tilt), -math.sin(tilt)], [math.sin(tilt), math.cos(tilt)]])
    # Few canvas sizes need few tables of coordinates and noise; a tiny image needs less shrinking.
    side = math.ceil(side_px / 50) * 100 if side_px > 25 else 50
    canvas = _paint(recipe.form(rng, side), recipe, np.append(light[:2] @ turn, light[2]), rng)
    _draw_shoots(canvas, recipe, rng)
    turn *= rng.uniform(0.94, 1.06, 2)
    # Every fourth pixel of 200 is enough to find the extent.
    step = side // 50
    points = np.argwhere(canvas[::step, ::step, 3] > 127)[:, ::-1] * step @ turn.T
    low, high = points.min(axis=0), points.max(axis=0)
    turn *= (scale := fill * side_px / (high - low).max())
    shift = (side_px - 1) / 2 - scale * (low + high) / 2
    return np.asarray(cv2.warpAffine(canvas, np.column_stack([turn, shift]), (side_px, side_px)), np.uint8)


def lay(ground: Pixels, fruit: Pixels, light: NDArray[np.float64]) -> None:
    """Draw a fruit with its soft shadow onto a piece of ground of the same size, in place."""
    side = len(fruit)
    away = np.array([[1, 0, -0.05 * side * light[0]], [0, 1, -0.06 * side * light[1]]])
    shadow = cv2.GaussianBlur(cv2.warpAffine(fruit[:, :, 3], away, (side, side)), (0, 0), side * 0.03)
    cover = (255 - fruit[:, :, 3:]) * (1 - shadow[:, :, None] * np.float32(0.35 / 255)) * np.float32(1 / 255)
    np.add(fruit[:, :, :3], ground * cover, out=ground, casting="unsafe")
