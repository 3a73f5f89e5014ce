"""Draw weights for an architecture, in TensorFlow's own Keras, and save them as keras does.

draw_weights.py FOLDER [KERAS_NAME SIZE ALPHA]...: each becomes FOLDER/<keras name>-<size>-<alpha>.weights.h5.
Alpha 0 is for those that have no width. The statistics of the batch normalisations are made plausible by one pass
over pictures, so that no layer's output dies away or explodes.
"""

import os
import sys

os.environ["KERAS_BACKEND"] = "tensorflow"

import keras
import numpy as np


def pictures(size: int) -> np.ndarray:
    """Give smooth colours as the eye sees them, from -1 to 1: (24, size, size, 3)."""
    coarse = np.random.default_rng(0).uniform(-1, 1, (24, 12, 12, 3)).astype("float32")
    return np.asarray(keras.ops.image.resize(coarse, (size, size), interpolation="bicubic"))


def draw(folder: str, name: str, size: int, alpha: float) -> None:
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    options = {"alpha": alpha} if alpha else {}
    build = getattr(keras.applications, name)
    model = build(include_top=False, weights=None, input_shape=(size, size, 3), pooling="avg", **options)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            if layer.gamma is not None:
                layer.gamma.assign(rng.uniform(0.6, 1.4, layer.gamma.shape))
            layer.beta.assign(rng.normal(0, 0.2, layer.beta.shape))
            layer.momentum = 0.0
    inside = any(type(layer).__name__ in ("Rescaling", "Normalization") for layer in model.layers)
    values = pictures(size)
    model((values + 1) * 127.5 if inside else values, training=True)
    model.save_weights(f"{folder}/{name}-{size}-{alpha:g}.weights.h5")
    keras.utils.clear_session()


words = sys.argv[2:]
for start in range(0, len(words), 3):
    draw(sys.argv[1], words[start], int(words[start + 1]), float(words[start + 2]))
