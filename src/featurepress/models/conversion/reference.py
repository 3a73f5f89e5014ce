"""The features of some pictures as the library computes them that a model comes from; runs in a child process.

Nothing of our own pixel code is used here, so that a mistake there cannot hide: TensorFlow or Pillow resize, keras
normalises and infers. KERAS_BACKEND says which keras: tensorflow where it is installed, else openvino.
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
    card: ModelCard, pooling: str, pictures: Sequence[Any], keras_cache: str
) -> tuple[np.ndarray[Any, Any], str]:
    """Give the reference's features of some pictures, and the reference's name.

    Parameters
    ----------
    card : ModelCard
        What is to be verified.
    pooling : str
        ``avg``, ``flatten`` or ``max``.
    pictures : sequence of array (H, W, 3) uint8
        RGB, decoded.
    keras_cache : str
        The user's keras's folder of weights.

    Returns
    -------
    array (n_samples, n_features) float32, str
    """
    levels = np.stack([_resized(pixels, card.preprocess) for pixels in pictures])
    kind = card.origin.get("request", {}).get("kind")
    if kind == "keras" and "variant" in card.origin:
        return _by_keras_application(card, pooling, levels, keras_cache)
    values = _normalised(levels, card.preprocess)
    if kind == "keras" and _is_unchanged(Path(card.origin["file"]), card.weights_sha256):
        return _by_keras_file(card, pooling, values)
    return _by_openvino(card, pooling, values)


def _is_unchanged(path: Path, sha256: str) -> bool:
    return path.is_file() and content_hash(path) == sha256


# -- pixels --------------------------------------------------------------------------------------------------


def _resized(pixels: Any, spec: PreprocessSpec) -> Any:
    """Resize and cut one picture: (height, width, 3) float32, levels."""
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
    """Resize in float with Pillow, colour by colour."""
    bands = [Image.fromarray(pixels[..., band].astype(np.float32)) for band in range(3)]
    return np.stack([np.asarray(band.resize((width, height), Image.Resampling[name])) for band in bands], axis=-1)


def _by_interpolation(pixels: Any, height: int, width: int) -> Any:
    """Interpolate linearly between pixel centres, in double precision."""

    def along(values: Any, to: int) -> Any:
        return _interpolated((np.arange(to) + 0.5) * (len(values) / to) - 0.5, values)

    return _along_both(along, pixels, height, width)


def _by_area(pixels: Any, height: int, width: int) -> Any:
    """Take the mean of the source area below each target pixel: the difference of two running sums."""

    def along(values: Any, to: int) -> Any:
        sums = np.concatenate([np.zeros_like(values[:1]), np.cumsum(values, axis=0)])
        return np.diff(_interpolated(np.linspace(0, len(values), to + 1), sums), axis=0) * (to / len(values))

    return _along_both(along, pixels, height, width)


def _along_both(along: Callable[[Any, int], Any], pixels: Any, height: int, width: int) -> Any:
    rows = along(pixels.astype(np.float64), height)
    return along(rows.transpose(1, 0, 2), width).transpose(1, 0, 2)


def _interpolated(places: Any, values: Any) -> Any:
    """Interpolate along the first axis; beyond its ends lie the ends."""
    columns = [np.interp(places, np.arange(len(values)), column) for column in values.reshape(len(values), -1).T]
    return np.stack(columns, axis=1).reshape(len(places), *values.shape[1:])


def _normalised(levels: Any, spec: PreprocessSpec) -> Any:
    ordered = levels if spec.channel_order == "RGB" else levels[..., ::-1]
    return ((ordered - np.asarray(spec.mean)) / np.asarray(spec.scale)).astype(np.float32)


# -- models --------------------------------------------------------------------------------------------------


def _by_keras_application(card: ModelCard, pooling: str, levels: Any, keras_cache: str) -> tuple[Any, str]:
    keras = keras_models.quiet_keras()
    told = dict(card.origin["told"])
    build = getattr(keras.applications, told["keras_name"])
    options = {"include_top": False, "input_shape": (told["size"], told["size"], 3)}
    if told["alpha"] is not None:
        options["alpha"] = told["alpha"]
    model = keras_models.Weights(told, Path(keras_cache), build, options).build(
        None if pooling == "flatten" else pooling
    )
    values = keras_models.preprocess_input(build)(levels.copy())
    return _in_batches(lambda batch: _flat(model(batch, training=False)), values), _name_of(keras)


def _by_keras_file(card: ModelCard, pooling: str, values: Any) -> tuple[Any, str]:
    keras, model = keras_models.load_keras(card.origin["file"])
    model = keras_models.keras_cut(keras, model, card.output)
    grids = _in_batches(lambda batch: np.asarray(model(batch, training=False)), values)
    return _pooled(grids, pooling), _name_of(keras)


def _by_openvino(card: ModelCard, pooling: str, values: Any) -> tuple[Any, str]:
    """Run the ready model as it is, a picture at a time, and pool in NumPy."""
    import openvino as ov

    core = ov.Core()
    model = core.read_model(model_file(card.file, card.weights_sha256))
    model.reshape({model.input(0): [card.batch or 1, card.preprocess.height, card.preprocess.width, 3]})
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    if model.input(0).get_element_type() == ov.Type.u8:
        values = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    run: Callable[[Any], Any] = lambda one: compiled({0: np.repeat(one, card.batch or 1, axis=0)})[0][:1]  # noqa: E731
    grids = np.concatenate([run(values[i : i + 1]).copy() for i in range(len(values))])
    return _pooled(grids, pooling), f"OpenVINO {version('openvino')} float32, a picture at a time"


def _in_batches(run: Callable[[Any], Any], values: Any) -> Any:
    return np.concatenate([run(values[start : start + _BATCH]) for start in range(0, len(values), _BATCH)])


def _flat(output: Any) -> Any:
    array = np.asarray(output)
    return array.reshape(len(array), -1)


def _pooled(grids: Any, pooling: str) -> Any:
    if grids.ndim == 3:  # (N, tokens, C)
        grids = grids[:, :, None]
    if grids.ndim == 2 or pooling == "flatten":
        return grids.reshape(len(grids), -1)
    axes = (1, 2)
    return grids.mean(axis=axes, dtype=np.float64).astype(np.float32) if pooling == "avg" else grids.max(axis=axes)


def _name_of(keras: Any) -> str:
    backend = os.environ["KERAS_BACKEND"]
    package = {"tensorflow": "TensorFlow", "openvino": "OpenVINO"}[backend]
    if backend == "tensorflow":
        import tensorflow as tf

        return f"Keras {keras.__version__} on {package} {tf.__version__}"
    return f"Keras {keras.__version__} on {package} {version('openvino')} float32"
