"""Embed values in memory: encoded images, pixels, or paths and urls to read.

A child process embeds them. A value that kills two children in a row becomes a failure, as any bad value.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Union

import numpy as np

from featurepress.embedding.inference import embed_images
from featurepress.errors import ImageError, StoppedError
from featurepress.images import decode
from featurepress.process import Child, ChildDiedError
from featurepress.settings import ImageSettings
from featurepress.sources.lists.locations import masked, read_location
from featurepress.specs import BackboneSpec

if TYPE_CHECKING:
    import numpy.typing as npt

    from featurepress.specs import Pixels

_DECODED = 8  # images in memory at a time
_SLICE = 64  # values sent to the child at once
# Reasons of sources, which have listed the image, and the same without a listing.
_REASONS = {
    "vanished since listing": "no such file",
    "no longer a regular file": "not a regular file",
}


class Raw(NamedTuple):
    """Pixels in the layout of Spark's image source: blue, green, red and possibly alpha; or grey alone."""

    height: int
    width: int
    channels: int  # 1, 3 or 4
    data: bytes  # height * width * channels levels, uint8


# An encoded image, a path or url, pixels of Spark, pixels of NumPy (RGB, RGBA or grey), or no value.
Value = Union[bytes, str, Raw, "npt.NDArray[Any]", None]
Answer = tuple[bytes | None, str | None]  # features as the bytes of float32, or the reason of the failure


@dataclass
class Embedder:
    """Embed values in a child process, which is started on first use and then kept."""

    backbone: BackboneSpec
    precision: str
    limits: ImageSettings = field(default_factory=ImageSettings)
    _child: Child | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _is_abandoned: bool = False

    def embed(self, values: Sequence[Value]) -> list[Answer]:
        """Return for each value its features, or the reason why it has none.

        Raises
        ------
        ChildDiedError
            Only after `abandon`.
        """
        answers: list[Answer] = []
        with self._lock:
            for start in range(0, len(values), _SLICE):
                chunk = list(values[start : start + _SLICE])
                try:
                    answers += self._call(chunk)
                except ChildDiedError:
                    if self._is_abandoned:
                        raise
                    for value in chunk:
                        answers += self._call_alone(value)
        return answers

    def abandon(self) -> None:
        """Kill the child. An `embed` in another thread raises ChildDiedError, and so does every later call."""
        self._is_abandoned = True
        if (child := self._child) is not None:
            child.kill()

    def close(self) -> None:
        """Stop the child."""
        if self._child is not None:
            self._child.close(patience_seconds=0.5)
            self._child = None

    def _call_alone(self, value: Value) -> list[Answer]:
        """Embed a single value; return a failure if two children die of it."""
        reason = ""
        for _ in range(2):
            try:
                return self._call([value])
            except ChildDiedError as death:
                if self._is_abandoned:
                    raise
                reason = str(death)
        return [(None, f"decode: decoder crashed: its process {reason}, twice")]

    def _call(self, values: list[Value]) -> list[Answer]:
        if self._is_abandoned:
            raise ChildDiedError("was abandoned")
        if self._child is None or not self._child.is_ready:
            self.close()
            self._child = Child(("featurepress.embedding.values",))
        silence = len(values) * self.limits.timeout_seconds + self.limits.silence_seconds
        return self._child.call(
            embed_values, self.backbone, self.precision, values, self.limits, silence_seconds=silence
        )


def embed_values(
    backbone: BackboneSpec, precision: str, values: Sequence[Value], limits: ImageSettings
) -> list[Answer]:
    """Return for each value its features, or the reason why it has none; in this process."""
    answers: list[Answer] = []
    for start in range(0, len(values), _DECODED):
        decoded: list[Pixels | str] = []
        for value in values[start : start + _DECODED]:
            try:
                decoded.append(_pixels_of(value, limits))
            except (ImageError, StoppedError) as error:
                decoded.append(str(error))
        images = [item for item in decoded if not isinstance(item, str)]
        features: Iterator[Any] = iter(embed_images(backbone, precision, images) if images else ())
        for item in decoded:
            if isinstance(item, str):
                answers.append((None, " ".join(item.split())))
            elif np.isfinite(row := next(features)).all():
                answers.append((row.tobytes(), None))
            else:
                answers.append((None, "infer: features are not finite"))
    return answers


def _pixels_of(value: Value, limits: ImageSettings) -> Pixels:
    if value is None:
        raise ImageError("read", "no value")
    if isinstance(value, Raw):
        return _rgb(value)
    if isinstance(value, np.ndarray):
        return _from_array(value)
    data = _read(value, limits) if isinstance(value, str) else bytes(value)
    if len(data) > limits.max_bytes:
        raise ImageError("read", f"too many bytes: {len(data)}, above the limit of {limits.max_bytes}")
    pixels: Pixels = decode(data, max_pixels=limits.max_pixels)
    return pixels


def _read(location: str, limits: ImageSettings) -> bytes:
    try:
        return read_location(location, limits)
    except ImageError as error:
        raise ImageError(error.stage, _REASONS.get(error.reason, error.reason)) from error


def _rgb(raw: Raw) -> Pixels:
    """Convert blue, green, red to RGB. Alpha is composited over white."""
    if raw.channels not in (1, 3, 4) or len(raw.data) != raw.height * raw.width * raw.channels or not raw.data:
        raise ImageError("decode", f"not an image: {raw.channels} channels, {len(raw.data)} bytes")
    levels = np.frombuffer(raw.data, np.uint8).reshape(raw.height, raw.width, raw.channels)
    return _opaque(levels if raw.channels == 1 else levels[:, :, 2::-1], levels[:, :, 3:])


def _from_array(pixels: npt.NDArray[Any]) -> Pixels:
    """Return RGB as it is, and grey as three equal channels. Alpha is composited over white."""
    shape = pixels.shape if pixels.ndim == 3 else (*pixels.shape, 1)
    if pixels.dtype != np.uint8 or len(shape) != 3 or shape[2] not in (1, 3, 4) or not pixels.size:
        raise ImageError(
            "decode",
            f"not an image: an array of shape {pixels.shape} and type {pixels.dtype}; must be (H, W), (H, W, 3) or "
            "(H, W, 4), uint8",
        )
    levels = pixels.reshape(shape)
    return _opaque(levels[:, :, :3], levels[:, :, 3:])


def _opaque(levels: Pixels, alpha: Pixels) -> Pixels:
    """Return RGB over white, from levels (H, W, 3 or 1) and alpha (H, W, 1), or (H, W, 0) without alpha."""
    if levels.shape[2] == 1:
        return np.repeat(levels, 3, axis=2)
    if alpha.size:
        over = alpha.astype(np.uint16)
        levels = ((levels * over + 255 * (255 - over) + 127) // 255).astype(np.uint8)
    return np.ascontiguousarray(levels)


def name_of(value: Any) -> str:
    """Return the name of a value in messages: a location without its secrets, or the kind of image."""
    if isinstance(value, str):
        return f"'{masked(value)}'"
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape}"
    return "no value" if value is None else f"an image of {len(value)} bytes"
