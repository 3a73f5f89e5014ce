"""Compare a model's features with those of the library that it comes from, and keep the result as a certificate.

The same decoded images go through featurepress and through the reference, which runs in a child process. The
certificate is stored with the model and copied into manifests.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from featurepress.embedding.inference import decode_images, embed_images
from featurepress.embedding.probe import cosines
from featurepress.errors import ModelError, SourceError
from featurepress.ledger.provenance import cpu_name, library_versions
from featurepress.models import store
from featurepress.models.backbone import supports_bfloat16
from featurepress.models.card import ModelCard
from featurepress.models.catalog import find_card
from featurepress.models.origins.keras_applications import in_child
from featurepress.models.origins.weights import keras_folder
from featurepress.progress import OnProgress, show_progress, step
from featurepress.settings import Settings
from featurepress.sources import Listing, Locations, describe

MAX_IMAGES = 64
_MAX_BYTES = 512 * 1024**2  # of decoded images: all are sent to the reference at once


@dataclass(frozen=True)
class Nearness:
    """How close features are to those of the reference."""

    min_cosine: float
    mean_cosine: float
    max_difference: float  # largest absolute difference of a feature
    largest_feature: float  # of the reference, absolute


@dataclass(frozen=True)
class Certificate:
    """The result of `verify`."""

    model: str
    pooling: str
    fingerprint: str
    reference: str  # the library with which the model was compared
    n_images: int
    precisions: dict[str, Nearness]  # float32 and, if the CPU supports it, bfloat16
    made: str  # UTC, ISO 8601
    cpu: str
    versions: dict[str, str]  # of the libraries


def verify(
    model: str,
    sources: Locations,
    *,
    pooling: str = "avg",
    limit: int = MAX_IMAGES,
    size: int | None = None,
    alpha: float | None = None,
    weights: str | None = None,
    progress: bool | OnProgress = True,
) -> Certificate:
    """Compare a model's features with those of the library that it comes from.

    Parameters
    ----------
    model : str
        As for `embed`.
    sources : str, path, or sequence of them
        Images. The first `limit` that can be decoded are used.
    pooling : str
        Pooling of the features: ``avg``, ``flatten`` or ``max``.
    limit : int
        Maximum number of images. Default 64.
    size : int, optional
        Side of the input in pixels, for models that leave a choice.
    alpha : float, optional
        Width of a MobileNet.
    weights : str, optional
        ``imagenet`` (default) or the path of a Keras weights file, for Keras Applications.
    progress : bool or callable
        True shows one line in a terminal or notebook. A callable gets a `Progress`.

    Returns
    -------
    Certificate
        It is also stored with the model.

    Raises
    ------
    ModelError
        There is no such model, or its reference is not available.
    SourceError
        No image could be decoded.

    Notes
    -----
    The reference of a Keras model is Keras on TensorFlow if that is installed (``pip install
    'featurepress[parity]'``), else Keras on OpenVINO in float32. Other models are compared with the original file
    in OpenVINO, preprocessed with NumPy and Pillow, one image at a time.
    """
    with show_progress(progress) as on_progress:
        card = find_card(model, size=size, alpha=alpha, weights=weights, pooling=pooling, on_progress=on_progress)
        images = _decode_first(sources, limit)
        on_progress(step(f"running the reference on {len(images)} images"))
        expected, reference = _reference(card, pooling, images)
    spec = card.backbone(pooling)
    precisions = ["float32"] + (["bfloat16"] if supports_bfloat16(spec) else [])
    certificate = Certificate(
        model=card.name,
        pooling=pooling,
        fingerprint=spec.fingerprint,
        reference=reference,
        n_images=len(images),
        precisions={
            precision: nearness(embed_images(spec, precision, images), expected) for precision in precisions
        },
        made=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        cpu=cpu_name(),
        versions=library_versions(),
    )
    kept = store.read_note(card.file, store.CERTIFICATE)
    store.write_note(card.file, store.CERTIFICATE, {**kept, pooling: asdict(certificate)})
    return certificate


def _decode_first(sources: Locations, limit: int) -> list[Any]:
    specs, settings = describe(sources), Settings()
    images: list[Any] = []
    n_bytes = 0
    for _, pixels in decode_images(specs, settings, Listing(specs, settings.listing)):
        images.append(pixels)
        n_bytes += pixels.nbytes
        if len(images) == limit or n_bytes > _MAX_BYTES:
            break
    if not images:
        raise SourceError("None of the images can be decoded, so there is nothing to verify with.")
    return images


def _reference(card: ModelCard, pooling: str, images: Sequence[Any]) -> tuple[Any, str]:
    """Return the features of the reference, and its name."""
    from featurepress.models.conversion import reference

    backend = "tensorflow" if importlib.util.find_spec("tensorflow") is not None else "openvino"
    result: tuple[Any, str] = in_child(
        reference.reference_features, card, pooling, images, str(keras_folder()), backend=backend
    )
    return result


def nearness(ours: Any, expected: Any) -> Nearness:
    """Compare features with those of the reference: arrays (n_samples, n_features)."""
    if ours.shape != expected.shape:
        raise ModelError(f"The features have the shape {ours.shape}, those of the reference {expected.shape}.")
    found = cosines(ours, expected)
    return Nearness(
        min_cosine=float(found.min()),
        mean_cosine=float(found.mean()),
        max_difference=float(np.abs(ours.astype(np.float64) - expected).max()),
        largest_feature=float(np.abs(expected).max()),
    )
