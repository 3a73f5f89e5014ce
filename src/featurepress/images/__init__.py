"""Decode images to pixels, and resize pixels to the input of a model."""

from featurepress.images.decode import decode
from featurepress.images.preprocess import preprocess

__all__ = ["decode", "preprocess"]
