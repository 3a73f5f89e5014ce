"""Decode and embed a few images in memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
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


def decode_images(
    sources: Sequence[SourceSpec], settings: Settings, refs: Iterable[ImageRef]
) -> Iterator[tuple[ImageRef, Pixels]]:
    """Yield the pictures that can be decoded, in order: arrays (H, W, 3) uint8, RGB."""
    for ref, data in read_images(sources, settings, refs):
        with contextlib.suppress(ImageError):
            yield ref, decode(content_of(data), max_pixels=settings.images.max_pixels)


def embed_images(backbone: BackboneSpec, precision: str, pictures: Sequence[Pixels]) -> Features:
    """Give the features of decoded pictures: (n_samples, n_features) float32."""
    inputs = empty_batch(backbone, len(pictures))
    for pixels, room in zip(pictures, inputs, strict=True):
        preprocess(pixels, backbone.preprocess, room)
    return infer_all(backbone, precision, inputs)


def infer_all(spec: BackboneSpec, precision: str, inputs: Sequence[Any]) -> Features:
    """Run any number of preprocessed pictures."""
    backbone = load_backbone(spec, precision)
    batch, rows = empty_batch(spec, backbone.batch_size), []
    for start in range(0, len(inputs), len(batch)):
        run = inputs[start : start + len(batch)]
        batch[: len(run)] = run
        rows.append(infer(backbone, batch)[: len(run)].copy())
    return np.concatenate(rows)


def empty_batch(spec: BackboneSpec, size: int) -> Any:
    """Give room for a batch: array (size, H, W, 3) of the model's input type."""
    steps = spec.preprocess
    return np.zeros((size, steps.height, steps.width, 3), steps.dtype)


def infer(backbone: Backbone, batch: Any) -> Any:
    """Run a batch; a failure of the runtime stops the run."""
    try:
        return backbone(batch)
    except RuntimeError as error:
        raise StoppedError(f"The model could not be run: {' '.join(str(error).split())}.") from error
