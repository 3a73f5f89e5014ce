"""Resize pictures with TensorFlow: a program of its own, since importing TensorFlow is slow and loud.

tensorflow_resize.py PICTURES.npz RESULTS.npz CASES, these as JSON: [[picture, height, width, method, antialias]]
"""

import json
import sys

import numpy as np
import tensorflow as tf

pictures = np.load(sys.argv[1])
np.savez(
    sys.argv[2],
    **{
        str(number): tf.image.resize(pictures[name], [height, width], method=method, antialias=antialias).numpy()
        for number, (name, height, width, method, antialias) in enumerate(json.loads(sys.argv[3]))
    },
)
