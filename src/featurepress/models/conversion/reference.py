"""Features computed by the library that a model comes from, for comparison; runs in a child process.

Our own pixel code is not used here, so that its mistakes are found: TensorFlow or Pillow resizes, Keras normalises
and infers. KERAS_BACKEND is tensorflow if it is installed, else openvino.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from featurepress.models.card import ModelCard
from featurepress.models.conversion import keras_models
from featurepress.models.store import content_hash, model_file
from featurepress.specs import PreprocessSpec

_BATCH = 16


def reference_features(
    card: ModelCard, pooling: str, images: Sequence[Any], keras_cache: str
) -> tuple[np.ndarray[Any, Any], str]:
    """Return the reference's features, (n_samples, n_features) float32, and the reference's name.

    `images` are RGB arrays (H, W, 3) uint8; `keras_cache` is the folder of weights of the user's own Keras.
    """
    levels = np.stack([_resized(pixels, card.preprocess) for pixels in images])
    kind = card.origin.get("request", {}).get("kind")
    if kind == "keras" and "variant" in card.origin:
        return _by_keras_application(card, pooling, levels, keras_cache)
    values = _normalised(levels, card.preprocess)
    if kind == "keras":
        path = Path(card.origin["file"])
        if path.is_file() and content_hash(path) == card.weights_sha256:
            return _by_keras_file(card, pooling, values)
    return _by_openvino(card, pooling, values)


# -- pixels --------------------------------------------------------------------------------------------------


def _resized(pixels: Any, spec: PreprocessSpec) -> Any:
    """Return one image resized and cropped: (height, width, 3) float32, levels."""
    height, width = spec.height, spec.width
    if spec.shortest_edge is not None:
        short, long = sorted(pixels.shape[:2])
        long = int(spec.shortest_edge * long / short)
        height, width = (
            (spec.shortest_edge, long) if pixels.shape[0] <= pixels.shape[1] else (long, spec.shortest_edge)
        )
    whole = _whole(pixels, height, width, spec)
    top, left = (height - spec.height) // 2, (width - spec.width) // 2
    return whole[top : top + spec.height, left : left + spec.width].astype(np.float32)


def _whole(pixels: Any, height: int, width: int, spec: PreprocessSpec) -> Any:
    if spec.interpolation == "area-or-linear":
        shrinks = pixels.shape[0] > height and pixels.shape[1] > width
        plain = _by_area(pixels, height, width) if shrinks else _by_interpolation(pixels, height, width)
        return np.rint(plain)
    if spec.dtype == "uint8":
        method = Image.Resampling[spec.interpolation.upper()]
        return np.asarray(Image.fromarray(pixels).resize((width, height), method))
    if os.environ["KERAS_BACKEND"] == "tensorflow":
        import tensorflow as tf

        return tf.image.resize(pixels, [height, width], method=spec.interpolation, antialias=spec.antialias).numpy()
    if spec.interpolation == "bilinear" and not spec.antialias:
        return _by_interpolation(pixels, height, width)
    if spec.interpolation == "area":
        return _by_area(pixels, height, width)
    return _by_pillow(pixels, height, width, spec.interpolation.upper())


def _by_pillow(pixels: Any, height: int, width: int, name: str) -> Any:
    """Return an image resized in float32 with Pillow, channel by channel."""
    bands = [Image.fromarray(pixels[..., band].astype(np.float32)) for band in range(3)]
    return np.stack([np.asarray(band.resize((width, height), Image.Resampling[name])) for band in bands], axis=-1)


def _by_interpolation(pixels: Any, height: int, width: int) -> Any:
    """Return an image resized by linear interpolation between pixel centres, in double precision."""

    def along(values: Any, to: int) -> Any:
        return _interpolated((np.arange(to) + 0.5) * (len(values) / to) - 0.5, values)

    return _along_both(along, pixels, height, width)


def _by_area(pixels: Any, height: int, width: int) -> Any:
    """Return an image resized by area: the difference of two running sums for each target pixel."""

    def along(values: Any, to: int) -> Any:
        sums = np.concatenate([np.zeros_like(values[:1]), np.cumsum(values, axis=0)])
        return np.diff(_interpolated(np.linspace(0, len(values), to + 1), sums), axis=0) * (to / len(values))

    return _along_both(along, pixels, height, width)


def _along_both(along: Callable[[Any, int], Any], pixels: Any, height: int, width: int) -> Any:
    rows = along(pixels.astype(np.float64), height)
    return along(rows.transpose(1, 0, 2), width).transpose(1, 0, 2)


def _interpolated(positions: Any, values: Any) -> Any:
    """Return values at positions along the first axis; the ends are repeated beyond it."""
    columns = [np.interp(positions, np.arange(len(values)), column) for column in values.reshape(len(values), -1).T]
    return np.stack(columns, axis=1).reshape(len(positions), *values.shape[1:])


def _normalised(levels: Any, spec: PreprocessSpec) -> Any:
    ordered = levels if spec.channel_order == "RGB" else levels[..., ::-1]
    return ((ordered - np.asarray(spec.mean)) / np.asarray(spec.scale)).astype(np.float32)


# -- models --------------------------------------------------------------------------------------------------


def _by_keras_application(card: ModelCard, pooling: str, levels: Any, keras_cache: str) -> tuple[Any, str]:
    application = keras_models.Application(card.origin["options"], Path(keras_cache))
    model = application.build(None if pooling == "flatten" else pooling)
    values = keras_models.preprocess_input(application.function)(levels.copy())
    outputs = _in_batches(lambda batch: np.asarray(model(batch, training=False)), values)
    return outputs.reshape(len(outputs), -1), _reference_name()


def _by_keras_file(card: ModelCard, pooling: str, values: Any) -> tuple[Any, str]:
    keras, model = keras_models.load_keras(card.origin["file"])
    model = keras_models.keras_cut(keras, model, card.output)
    grids = _in_batches(lambda batch: np.asarray(model(batch, training=False)), values)
    return _pooled(grids, pooling), _reference_name()


def _by_openvino(card: ModelCard, pooling: str, values: Any) -> tuple[Any, str]:
    """Run the converted model on one image at a time, and pool in NumPy."""
    import openvino as ov

    core, batch = ov.Core(), card.batch or 1
    model = core.read_model(model_file(card.file, card.weights_sha256))
    model.reshape({model.input(0): [batch, card.preprocess.height, card.preprocess.width, 3]})
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    if model.input(0).get_element_type() == ov.Type.u8:
        values = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    grids = np.stack([compiled({0: np.stack([image] * batch)})[0][0].copy() for image in values])
    return _pooled(grids, pooling), f"OpenVINO {version('openvino')} float32, one image at a time"


def _in_batches(run: Callable[[Any], Any], values: Any) -> Any:
    return np.concatenate([run(values[start : start + _BATCH]) for start in range(0, len(values), _BATCH)])


def _pooled(grids: Any, pooling: str) -> Any:
    if grids.ndim == 3:  # (N, tokens, C)
        grids = grids[:, :, None]
    if grids.ndim == 2 or pooling == "flatten":
        return grids.reshape(len(grids), -1)
    if pooling == "max":
        return grids.max(axis=(1, 2))
    return grids.mean(axis=(1, 2), dtype=np.float64).astype(np.float32)


def _reference_name() -> str:
    if os.environ["KERAS_BACKEND"] == "tensorflow":
        import tensorflow as tf

        return f"Keras {version('keras')} on TensorFlow {tf.__version__}"
    return f"Keras {version('keras')} on OpenVINO {version('openvino')} float32"
