"""Settings for model files that do not describe their input and output completely."""

from __future__ import annotations

from dataclasses import dataclass

from featurepress.settings.constraint import Stage, optional_setting


@dataclass(frozen=True)
class Choices(Stage):
    """What the user adds to a model file; None leaves it to the file, or to the default of its kind.

    `mean` and `scale` normalise pixels from 0 to 1, as ``(pixel - mean) / scale``, in the order of the channels.
    """

    size: int | None = optional_setting(int, "Side of the input in pixels.", minimum=1, maximum=4096)
    output: str | None = optional_setting(
        str, "Tensor whose values are the features; 'models show FILE --outputs' lists them."
    )
    resize: str | None = optional_setting(
        str, "How images become square (default: stretch).", choices=("stretch", "crop")
    )
    shortest_edge: int | None = optional_setting(
        int, "With --resize crop: pixels of the shorter side before cropping (default: the size).", minimum=1
    )
    interpolation: str | None = optional_setting(
        str,
        "How pixels are interpolated (default: bilinear).",
        choices=("bilinear", "bicubic", "area", "nearest", "box", "hamming", "lanczos"),
    )
    like: str | None = optional_setting(
        str,
        "Library whose resizing is reproduced (default: pillow for ONNX, OpenVINO and byte inputs).",
        choices=("pillow", "tensorflow"),
    )
    antialias: bool | None = optional_setting(
        bool, "Antialias, with --like tensorflow only (default: off).", flag="--antialias/--no-antialias"
    )
    mode: str | None = optional_setting(
        str,
        "Normalisation by Keras's name; 'raw' leaves levels from 0 to 255.",
        choices=("tf", "caffe", "torch", "raw"),
    )
    mean: tuple[float, ...] | None = optional_setting(
        tuple, "Subtracted from pixels from 0 to 1: one number, or three with commas."
    )
    scale: tuple[float, ...] | None = optional_setting(
        tuple, "Divisor of (pixel - mean): one number, or three with commas."
    )
    channel_order: str | None = optional_setting(
        str, "Order of the colour channels (default: RGB).", choices=("RGB", "BGR")
    )
    layout: str | None = optional_setting(
        str, "Order of the input's axes, if its shape does not determine it.", choices=("NHWC", "NCHW")
    )
