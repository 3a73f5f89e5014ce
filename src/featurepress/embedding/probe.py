"""Try the first images of a run: whether they decode, and whether bfloat16 agrees with float32."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from featurepress.embedding.inference import Decoder, empty_batch, infer_all
from featurepress.embedding.reading import content_of, read_images, require_visible_sources
from featurepress.errors import ImageError, ModelError
from featurepress.images import decode, preprocess
from featurepress.ledger import Plan
from featurepress.models.backbone import fetch_model, supports_bfloat16
from featurepress.specs import Failure, ImageRef

if TYPE_CHECKING:
    import numpy.typing as npt


def probe_images(
    plan: Plan,
    refs: Sequence[ImageRef],
    n_wanted: int,
    *,
    decoder: Decoder | None = None,
    on_image: Callable[[ImageRef], None] = lambda ref: None,
) -> tuple[list[Failure], list[float], bool]:
    """Decode images until `n_wanted` succeed (1 if only float32 is possible), and embed those in both precisions.

    `plan` is a draft; nothing is written. `on_image` is called before each image is decoded.

    Returns
    -------
    failures, cosines, can_choose
        The failures; the cosine of each decoded image (1.0 where nothing was compared); whether bfloat16 is
        possible.
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
    full = infer_all(plan.backbone, "float32", inputs)  # while the other workers load their model
    if not np.isfinite(full).all(axis=1).any():
        raise ModelError(
            f"The features of the model {plan.backbone.model} are NaN or infinite for every image of the first "
            "batch. Check its weights, and --mean and --scale of models add."
        )
    if not can_choose:
        return failures, [1.0] * len(inputs), False
    return failures, cosines(full, infer_all(plan.backbone, "bfloat16", inputs)).tolist(), True


def cosines(A: Any, B: Any) -> npt.NDArray[np.float64]:
    """Return the cosine between the rows of two arrays (n_samples, n_features): (n_samples,) float64.

    1 where both rows are zero, 0 where only one is, -1 where a value is not finite.
    """
    A, B = A.astype(np.float64), B.astype(np.float64)
    norms = np.linalg.norm(A, axis=1) * np.linalg.norm(B, axis=1)
    both_zero = ~A.any(axis=1) & ~B.any(axis=1)
    found = np.divide((A * B).sum(axis=1), norms, out=np.zeros_like(norms), where=norms > 0)
    return np.nan_to_num(np.where(both_zero, 1.0, found), nan=-1.0)
