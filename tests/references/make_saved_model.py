"""Make a small SavedModel with TensorFlow: make_saved_model.py FOLDER WEIGHTS.npz, these as for make_keras.py."""

import sys

import numpy as np
import tensorflow as tf

weights = np.load(sys.argv[2])


class Net(tf.Module):  # type: ignore[misc, unused-ignore]
    """relu(convolution)."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = tf.Variable(weights["kernel"])
        self.bias = tf.Variable(weights["bias"])

    @tf.function(input_signature=[tf.TensorSpec([None, 8, 12, 3], tf.float32, name="pixels")])  # type: ignore[untyped-decorator, unused-ignore]
    def __call__(self, pixels: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"grid": tf.nn.relu(tf.nn.conv2d(pixels, self.kernel, 2, "VALID") + self.bias)}


tf.saved_model.save(Net(), sys.argv[1])
