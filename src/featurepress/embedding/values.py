"""Embed values in memory, one by one: encoded pictures, pixels, or places to read. A bad one is no end.

Values are embedded in a child process: one that kills its decoder costs two children and becomes a failure.
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

_AT_ONCE = 8  # pictures in memory, decoded
_SLICE = 64  # values sent to the child at once
# What sources say of what they have listed, and what that is of a place that nobody listed.
_NEVER_LISTED = {
    "vanished since listing": "no such file",
    "not a regular file any more": "not a regular file",
}


class Raw(NamedTuple):
    """Pixels as Spark's image source gives them: rows of blue, green, red, and perhaps alpha; or grey alone.

    Attributes
    ----------
    height, width, channels : int
        In pixels; 1, 3 or 4 channels.
    data : bytes
        ``height * width * channels`` levels, uint8.
    """

    height: int
    width: int
    channels: int
    data: bytes


# An encoded picture, a place, pixels as Spark or as NumPy has them (RGB, RGBA or grey), or nothing.
Value = Union[bytes, str, Raw, "npt.NDArray[Any]", None]
Answer = tuple[bytes | None, str | None]  # features as the bytes of float32, or why there are none


@dataclass
class Embedder:
    """Embeds values in a child process that is started when it is needed, and kept.

    Parameters
    ----------
    backbone : BackboneSpec
        What is computed.
    precision : str
        ``float32`` or ``bfloat16``.
    limits : ImageSettings
        What one image may cost.
    """

    backbone: BackboneSpec
    precision: str
    limits: ImageSettings = field(default_factory=ImageSettings)
    _child: Child | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _is_abandoned: bool = False

    def embed(self, values: Sequence[Value]) -> list[Answer]:
        """Give for each value its features, or the reason why there are none.

        Raises
        ------
        ChildDiedError
            After `abandon`, and only then.
        """
        answers: list[Answer] = []
        with self._lock:
            for start in range(0, len(values), _SLICE):
                some = list(values[start : start + _SLICE])
                try:
                    answers += self._call(some)
                except ChildDiedError:
                    if self._is_abandoned:
                        raise
                    for value in some:
                        answers += self._carefully(value)
        return answers

    def abandon(self) -> None:
        """End the child at once, for good; a `embed` under way in another thread fails."""
        self._is_abandoned = True
        if (child := self._child) is not None:
            child.kill()

    def close(self) -> None:
        """End the child."""
        if self._child is not None:
            self._child.close(patience_seconds=0.5)
            self._child = None

    def _carefully(self, value: Value) -> list[Answer]:
        """Embed a value alone; at which two children die, it is the killer."""
        how = ""
        for _ in range(2):
            try:
                return self._call([value])
            except ChildDiedError as death:
                if self._is_abandoned:
                    raise
                how = str(death)
        return [(None, f"decode: decoder crashed: its process {how}, twice")]

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
    """Give for each value its features, or the reason why there are none; in this process."""
    answers: list[Answer] = []
    for start in range(0, len(values), _AT_ONCE):
        found: list[Pixels | str] = []
        for value in values[start : start + _AT_ONCE]:
            try:
                found.append(_picture(value, limits))
            except (ImageError, StoppedError) as error:
                found.append(str(error))
        pictures = [one for one in found if not isinstance(one, str)]
        features: Iterator[Any] = iter(embed_images(backbone, precision, pictures) if pictures else ())
        for one in found:
            if isinstance(one, str):
                answers.append((None, " ".join(one.split())))
            elif np.isfinite(row := next(features)).all():
                answers.append((row.tobytes(), None))
            else:
                answers.append((None, "infer: features are not finite"))
    return answers


def _picture(value: Value, limits: ImageSettings) -> Pixels:
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


def _read(place: str, limits: ImageSettings) -> bytes:
    try:
        return read_location(place, limits)
    except ImageError as error:
        raise ImageError(error.stage, _NEVER_LISTED.get(error.reason, error.reason)) from error


def _rgb(raw: Raw) -> Pixels:
    """Turn blue, green, red into RGB; alpha over white, as everywhere."""
    if raw.channels not in (1, 3, 4) or len(raw.data) != raw.height * raw.width * raw.channels or not raw.data:
        raise ImageError("decode", f"not an image: {raw.channels} channels, {len(raw.data)} bytes")
    levels = np.frombuffer(raw.data, np.uint8).reshape(raw.height, raw.width, raw.channels)
    return _opaque(levels if raw.channels == 1 else levels[:, :, 2::-1], levels[:, :, 3:])


def _from_array(pixels: npt.NDArray[Any]) -> Pixels:
    """Take RGB as it is; grey three times, alpha over white."""
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
    """Give RGB over white: of RGB or grey levels (H, W, 3 or 1), and alpha (H, W, 1), or (H, W, 0) for none."""
    if levels.shape[2] == 1:
        return np.repeat(levels, 3, axis=2)
    if alpha.size:
        over = alpha.astype(np.uint16)
        levels = ((levels * over + 255 * (255 - over) + 127) // 255).astype(np.uint8)
    return np.ascontiguousarray(levels)


def name_of(value: Any) -> str:
    """Give what errors call a value: a place without its secrets, or what kind of picture it is."""
    if isinstance(value, str):
        return f"'{masked(value)}'"
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape}"
    return "no value" if value is None else f"a picture of {len(value)} bytes"
