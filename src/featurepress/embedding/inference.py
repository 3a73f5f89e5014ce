"""Decode and embed images in memory."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from featurepress.embedding.reading import content_of, read_images
from featurepress.errors import ImageError, StoppedError
from featurepress.images import decode, preprocess
from featurepress.models.backbone import Backbone, load_backbone
from featurepress.settings import Settings
from featurepress.specs import BackboneSpec, ImageRef, SourceSpec

if TYPE_CHECKING:
    from featurepress.specs import Features, Pixels

Decoder = Callable[..., Any]  # (data, *, max_pixels) -> array (H, W, 3) uint8, RGB; raises ImageError


def decode_images(
    sources: Sequence[SourceSpec], settings: Settings, refs: Iterable[ImageRef]
) -> Iterator[tuple[ImageRef, Pixels]]:
    """Yield the images that can be decoded, in order, as arrays (H, W, 3) uint8, RGB. Skip the others."""
    for ref, data in read_images(sources, settings, refs):
        with contextlib.suppress(ImageError):
            yield ref, decode(content_of(data), max_pixels=settings.images.max_pixels)


def embed_images(spec: BackboneSpec, precision: str, images: Sequence[Pixels]) -> Features:
    """Return the features of decoded images: array (n_samples, n_features) float32."""
    inputs = empty_batch(spec, len(images))
    for pixels, target in zip(images, inputs, strict=True):
        preprocess(pixels, spec.preprocess, target)
    return infer_all(spec, precision, inputs)


def infer_all(spec: BackboneSpec, precision: str, inputs: Sequence[Any]) -> Features:
    """Run the model on any number of preprocessed images, batch by batch."""
    backbone = load_backbone(spec, precision)
    batch, rows = empty_batch(spec, backbone.batch_size), []
    for start in range(0, len(inputs), len(batch)):
        images = inputs[start : start + len(batch)]
        batch[: len(images)] = images
        rows.append(infer(backbone, batch)[: len(images)].copy())
    return np.concatenate(rows)


def empty_batch(spec: BackboneSpec, size: int) -> Any:
    """Return an array (size, H, W, 3) of zeros, of the model's input type."""
    steps = spec.preprocess
    return np.zeros((size, steps.height, steps.width, 3), steps.dtype)


def infer(backbone: Backbone, batch: Any) -> Any:
    """Run the model on a batch. An error of the runtime stops the run: StoppedError."""
    try:
        return backbone(batch)
    except RuntimeError as error:
        raise StoppedError(f"The model could not be run: {' '.join(str(error).split())}.") from error
