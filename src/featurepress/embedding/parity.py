"""The parity certificate: how near a model's features here are to those of the library that it comes from.

The same decoded pictures go through featurepress (in float32, and in bfloat16 where the CPU has it) and through
the reference, which runs in a process of its own. The certificate is kept beside the model and goes into manifests.
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
from featurepress.progress import OnProgress, ignore_progress, step
from featurepress.settings import Settings
from featurepress.sources import Listing, Locations, describe

MAX_IMAGES = 64
_MAX_BYTES = 512 * 1024**2  # of decoded pictures, which are sent to the reference whole


@dataclass(frozen=True)
class Nearness:
    """How near features are to the reference's.

    Attributes
    ----------
    min_cosine, mean_cosine : float
        Over the pictures.
    max_difference : float
        Largest absolute difference of a feature.
    largest_feature : float
        Largest absolute value of the reference's.
    """

    min_cosine: float
    mean_cosine: float
    max_difference: float
    largest_feature: float


@dataclass(frozen=True)
class Certificate:
    """What `verify` found.

    Attributes
    ----------
    model, pooling, fingerprint : str
        What was verified.
    reference : str
        What it was held against.
    n_images : int
        Number of pictures.
    precisions : dict
        ``float32`` and, where the CPU has it, ``bfloat16``: `Nearness`.
    made, cpu, versions
        When, where, with what.
    """

    model: str
    pooling: str
    fingerprint: str
    reference: str
    n_images: int
    precisions: dict[str, Nearness]
    made: str
    cpu: str
    versions: dict[str, str]


def verify(
    model: str,
    sources: Locations,
    *,
    pooling: str = "avg",
    limit: int = MAX_IMAGES,
    size: int | None = None,
    alpha: float | None = None,
    weights: str | None = None,
    on_progress: OnProgress = ignore_progress,
) -> Certificate:
    """Hold a model's features against those of the library that it comes from.

    Parameters
    ----------
    model : str
        As for `embed`.
    sources : str, path, or sequence of them
        Pictures; the first `limit` of them that can be decoded are taken.
    pooling : str
        What is pooled, and how.
    limit : int
        Largest number of pictures. Default 64.
    size : int, optional
        Side of the input in pixels, for models that leave a choice.
    alpha : float, optional
        Width of a MobileNet.
    weights : str, optional
        ``imagenet`` (default) or the path of a Keras weights file, for Keras Applications.
    on_progress : callable
        Receives progress.

    Returns
    -------
    Certificate
        It is kept beside the model as well.

    Raises
    ------
    ModelError
        There is no such model, or its reference cannot be had.
    SourceError
        No picture could be decoded.

    Notes
    -----
    With TensorFlow installed (``pip install 'featurepress[parity]'``) a keras model's reference is TensorFlow's own
    Keras; else Keras on OpenVINO in float32. Models of other kinds are held against the model as OpenVINO reads it,
    fed by plain NumPy and Pillow, a picture at a time.
    """
    card = find_card(model, size=size, alpha=alpha, weights=weights, pooling=pooling, on_progress=on_progress)
    spec = card.backbone(pooling)
    pictures = _pictures(sources, limit)
    on_progress(step(f"running the reference on {len(pictures)} pictures", 0, 0))
    expected, reference = _reference(card, pooling, pictures)
    precisions = ["float32"] + (["bfloat16"] if supports_bfloat16(spec) else [])
    certificate = Certificate(
        model=card.name,
        pooling=pooling,
        fingerprint=spec.fingerprint,
        reference=reference,
        n_images=len(pictures),
        precisions={one: nearness(embed_images(spec, one, pictures), expected) for one in precisions},
        made=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        cpu=cpu_name(),
        versions=library_versions(),
    )
    kept = store.read_note(card.file, store.CERTIFICATE)
    store.write_note(card.file, store.CERTIFICATE, {**kept, pooling: asdict(certificate)})
    return certificate


def _pictures(sources: Locations, limit: int) -> list[Any]:
    """Decode the first pictures."""
    specs, settings = describe(sources), Settings()
    pictures: list[Any] = []
    n_bytes = 0
    for _, pixels in decode_images(specs, settings, Listing(specs, settings.listing)):
        pictures.append(pixels)
        n_bytes += pixels.nbytes
        if len(pictures) == limit or n_bytes > _MAX_BYTES:
            break
    if not pictures:
        raise SourceError("None of the pictures could be decoded, so there is nothing to verify on.")
    return pictures


def _reference(card: ModelCard, pooling: str, pictures: Sequence[Any]) -> tuple[Any, str]:
    from featurepress.models.conversion import reference

    backend = "tensorflow" if importlib.util.find_spec("tensorflow") is not None else "openvino"
    given: tuple[Any, str] = in_child(
        reference.reference_features, card, pooling, pictures, str(keras_folder()), backend=backend
    )
    return given


def nearness(ours: Any, expected: Any) -> Nearness:
    """Compare features with the reference's, arrays (n_samples, n_features)."""
    if ours.shape != expected.shape:
        raise ModelError(f"The reference gives features of the shape {expected.shape}, this is {ours.shape}.")
    found = cosines(ours, expected)
    return Nearness(
        min_cosine=float(found.min()),
        mean_cosine=float(found.mean()),
        max_difference=float(np.abs(ours.astype(np.float64) - expected).max()),
        largest_feature=float(np.abs(expected).max()),
    )
