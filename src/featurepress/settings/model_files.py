"""What a user can say of a model file that does not say it itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from featurepress.settings.constraint import Stage, setting


def _choice(kind: type, help: str, **constraint: Any) -> Any:
    return setting(None, kind, help, optional=True, **constraint)


@dataclass(frozen=True)
class Choices(Stage):
    """What the user says of a model file; None where the file, or the custom of its kind, decides.

    `mean` and `scale` are of pixels from 0 to 1, as ``(pixel - mean) / scale``, in the order of the channels.
    """

    size: int | None = _choice(int, "Side of the input in pixels.", minimum=1, maximum=4096)
    output: str | None = _choice(
        str, "The tensor whose values are the features (models show --outputs lists them)."
    )
    resize: str | None = _choice(str, "Default: stretch.", choices=("stretch", "crop"))
    shortest_edge: int | None = _choice(
        int, "For crop: pixels of the shorter side before cutting (default: the size).", minimum=1
    )
    interpolation: str | None = _choice(
        str,
        "Default: bilinear.",
        choices=("bilinear", "bicubic", "area", "nearest", "box", "hamming", "lanczos"),
    )
    like: str | None = _choice(
        str,
        "Whose resizing (default: pillow for ONNX, OpenVINO and byte inputs).",
        choices=("pillow", "tensorflow"),
    )
    antialias: bool | None = _choice(
        bool, "With --like tensorflow only; off by default.", flag="--antialias/--no-antialias"
    )
    mode: str | None = _choice(
        str, "Keras's word for the normalisation; raw is 0..255.", choices=("tf", "caffe", "torch", "raw")
    )
    mean: tuple[float, ...] | None = _choice(tuple, "Of pixels from 0 to 1: a number, or three with commas.")
    scale: tuple[float, ...] | None = _choice(tuple, "What (pixel - mean) is divided by.")
    channel_order: str | None = _choice(str, "Default: RGB.", choices=("RGB", "BGR"))
    layout: str | None = _choice(str, "If the shape does not determine it.", choices=("NHWC", "NCHW"))
