"""Make small keras models: a program of its own, since keras takes its backend from the environment.

make_keras.py FOLDER WEIGHTS.npz NAME..., the weights with `kernel` (2, 2, 3, C), `bias` (C,) and `head` (C, D)
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["KERAS_BACKEND"] = "openvino"

import keras
import numpy as np
from keras import layers

HEIGHT, WIDTH = 8, 12
weights = np.load(sys.argv[2])


def conv(**options: Any) -> Any:
    channels = len(weights["bias"])
    return layers.Conv2D(channels, 2, strides=2, activation="relu", name="grid", **options)


def functional(shape: tuple[int | None, ...], *before: Any, dtype: str = "float32") -> Any:
    """Build the convolution with its pooling and head behind some layers."""
    pixels = x = keras.Input(shape, dtype=dtype, name="pixels")
    for layer in before:
        x = layer(x)
    x = conv()(x)
    x = layers.GlobalAveragePooling2D(name="mean")(x)
    return keras.Model(pixels, layers.Dense(weights["head"].shape[1], use_bias=False, name="vector")(x))


def nested() -> Any:
    """Build a model within a model, as people do who train a head on a ready one, and compile both."""
    inner = keras.Sequential([keras.Input((HEIGHT, WIDTH, 3)), conv()], name="inner")
    inner.compile(optimizer="sgd", loss=keras.losses.Huber(), metrics=[keras.metrics.MeanSquaredError()])
    return keras.Sequential(
        [
            keras.Input((HEIGHT, WIDTH, 3)),
            inner,
            layers.GlobalAveragePooling2D(name="mean"),
            layers.Dropout(0.2),
            layers.Dense(weights["head"].shape[1], use_bias=False, name="vector"),
        ]
    )


def fill(model: Any) -> None:
    """Set the weights."""
    for layer in model.layers:
        if layer.name == "inner":
            fill(layer)
        if layer.name == "grid":
            layer.set_weights([weights["kernel"], weights["bias"]])
        if layer.name == "vector":
            layer.set_weights([weights["head"]])


SIDES = (HEIGHT, WIDTH, 3)
MAKERS: dict[str, Callable[[], Any]] = {
    "plain": lambda: functional(SIDES),
    "scaled": lambda: functional(SIDES, layers.Rescaling(1 / 127.5, -1)),
    "open": lambda: functional((None, None, 3), layers.Rescaling(1 / 127.5, -1)),
    "nested": nested,
    "bytes": lambda: functional(SIDES, layers.Rescaling(1 / 127.5, -1), dtype="uint8"),
    "lambda": lambda: functional(SIDES, layers.Lambda(lambda x: x * 2, name="doubled")),
}

for name in sys.argv[3:]:
    made = MAKERS[name]()
    fill(made)
    if name == "nested":
        made.compile(optimizer=keras.optimizers.Adam(1e-3), loss="mse", metrics=["mae"])
    made.save(Path(sys.argv[1]) / f"{name}.keras")
