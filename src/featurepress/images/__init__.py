"""Turn the bytes of an image into pixels, and pixels into the input of a model."""

from featurepress.images.decode import decode
from featurepress.images.preprocess import preprocess

__all__ = ["decode", "preprocess"]
