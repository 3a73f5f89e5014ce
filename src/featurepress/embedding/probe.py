"""Try the first images of a run: whether they decode, and whether bfloat16 is faithful on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from featurepress.embedding.inference import empty_batch, infer_all
from featurepress.embedding.reading import content_of, read_images, require_visible_sources
from featurepress.errors import ImageError, ModelError
from featurepress.images import decode, preprocess
from featurepress.ledger import Plan
from featurepress.models.backbone import fetch_model, supports_bfloat16
from featurepress.specs import Failure, ImageRef

if TYPE_CHECKING:
    import numpy.typing as npt

Decoder = Callable[..., Any]  # (data, *, max_pixels) -> array (H, W, 3) uint8, or ImageError


def probe_images(
    plan: Plan,
    refs: Sequence[ImageRef],
    n_wanted: int,
    *,
    decoder: Decoder | None = None,
    on_image: Callable[[ImageRef], None] = lambda ref: None,
) -> tuple[list[Failure], list[float], bool]:
    """Try images until some are good, and compare float32 with bfloat16 on those.

    Parameters
    ----------
    plan : Plan
        A draft; nothing is written.
    refs : sequence of ImageRef
        What to try, in order.
    n_wanted : int
        Stop after so many good ones; after the first if the precision needs no proof.
    decoder : callable, optional
        Bytes to pixels.
    on_image : callable
        Called before each image is decoded.

    Returns
    -------
    failures, cosines, can_choose
        The failures; one cosine a good image (1.0 where nothing was compared); whether bfloat16 is to be had.
    """
    require_visible_sources(plan)
    fetch_model(plan.backbone, plan.storage)
    can_choose = plan.settings.features.precision != "float32" and supports_bfloat16(plan.backbone)
    inputs: list[Any] = []
    failures: list[Failure] = []
    batch = empty_batch(plan.backbone, 1)
    for ref, data in read_images(plan.sources, plan.settings, refs):
        on_image(ref)
        try:
            pixels = (decoder or decode)(content_of(data), max_pixels=plan.settings.images.max_pixels)
            preprocess(pixels, plan.backbone.preprocess, batch[0])
            inputs.append(batch[0].copy())
        except ImageError as error:
            failures.append(Failure(ref.uri, error.stage, error.reason))
        if len(inputs) == (n_wanted if can_choose else 1):
            break
    if not inputs:
        return failures, [], can_choose
    full = infer_all(plan.backbone, "float32", inputs)  # while the other cores load their model as well
    if not np.isfinite(full).all(axis=1).any():
        raise ModelError(
            f"The model {plan.backbone.model} gives features that are no numbers (NaN or infinite) for every "
            "picture of the first batch. Check its weights, and what it was told of --mean and --scale."
        )
    if not can_choose:
        return failures, [1.0] * len(inputs), False
    return failures, cosines(full, infer_all(plan.backbone, "bfloat16", inputs)).tolist(), True


def cosines(one: Any, other: Any) -> npt.NDArray[np.float64]:
    """Give the cosine between the rows of two arrays (n_samples, n_features): (n_samples,) float64.

    Rows that are all zero, in both, agree: 1. One side only does not: 0. What is no number does not: -1.
    """
    one, other = one.astype(np.float64), other.astype(np.float64)
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    both_zero = ~one.any(axis=1) & ~other.any(axis=1)
    found = np.divide((one * other).sum(axis=1), norms, out=np.zeros_like(norms), where=norms > 0)
    return np.nan_to_num(np.where(both_zero, 1.0, found), nan=-1.0)
