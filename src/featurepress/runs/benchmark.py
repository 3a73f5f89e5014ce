"""How many images a second each model embeds here: whole runs of embed, so that models are chosen on numbers."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featurepress.demo.orchard import draw_images
from featurepress.ledger.provenance import cpu_name
from featurepress.models import store
from featurepress.models.backbone import load_backbone, supports_bfloat16
from featurepress.models.card import ModelCard
from featurepress.models.catalog import CARDS, find_architecture, find_card, looks_like_a_path
from featurepress.models.origins import keras_applications
from featurepress.progress import OnProgress, Progress, ignore_progress, step
from featurepress.runs import verbs
from featurepress.settings import Settings, available_cores

_SECONDS = 4.0  # that a run should embed for
_DRAWN, _DRAWN_TIMES = 2_000, 10
_LEAST = 32


@dataclass(frozen=True)
class Speed:
    """What was measured of one model.

    Attributes
    ----------
    model : str
        Its name.
    size : int
        Side of its input in pixels.
    n_features, n_parameters : int
        With the pooling avg.
    images_per_second : dict
        By precision, over all workers.
    n_images : int
        Pictures a run, at least.
    weights : str
        ``random``, or where they come from.
    cpu, workers, pictures
        Where, on how many cores, on what.
    """

    model: str
    size: int
    n_features: int
    n_parameters: int
    images_per_second: dict[str, float]
    n_images: int
    weights: str
    cpu: str
    workers: int
    pictures: str


def bench(
    models: Sequence[str] = (),
    *,
    images: str | Path | None = None,
    size: int | None = None,
    random: bool = False,
    on_progress: OnProgress = ignore_progress,
) -> list[Speed]:
    """Measure models, one after the other.

    Parameters
    ----------
    models : sequence of str
        As for `embed`; by default those that are ready here.
    images : str or path, optional
        Images to embed; by default 2,000 drawn ones of 100x100.
    size : int, optional
        Side of the input, for models that leave a choice.
    random : bool
        Take random weights for models of Keras Applications that are not ready: nothing is downloaded, and the
        speed is the same.
    on_progress : callable
        Hears how it gets on.

    Returns
    -------
    list of Speed
        Kept beside the models as well, for ``models list``.
    """
    cards = [_card(name, size, random, on_progress) for name in models] or [*CARDS, *store.stored_cards()]
    with tempfile.TemporaryDirectory(prefix="featurepress-bench-") as scratch:
        source = str(images) if images is not None else str(Path(scratch) / "pictures")
        if images is None:
            _draw(Path(source))
        description = source if images is not None else f"{_DRAWN:,} drawn images of 100x100, repeated"
        return [_measure(card, source, description, Path(scratch), on_progress) for card in cards]


def _draw(folder: Path) -> None:
    """Draw pictures, and give them further names, until there are enough for the fastest model."""
    drawn = draw_images(folder / "0", _DRAWN)
    for again in range(1, _DRAWN_TIMES):
        for path in drawn:
            link = folder / str(again) / path.relative_to(folder / "0")
            link.parent.mkdir(parents=True, exist_ok=True)
            link.hardlink_to(path)


def _card(name: str, size: int | None, random: bool, on_progress: OnProgress) -> ModelCard:
    if random and not name.startswith("embedded") and store.find_name(name) is None and not looks_like_a_path(name):
        return keras_applications.load_card(
            find_architecture(name),
            size=size,
            alpha=None,
            weights=keras_applications.RANDOM,
            pooling="avg",
            on_progress=on_progress,
        )
    return find_card(name, size=size, on_progress=on_progress)


def _measure(card: ModelCard, source: str, description: str, scratch: Path, on_progress: OnProgress) -> Speed:
    pooling = card.pooled if card.pooled in ("avg", "max") else "avg"
    spec = card.backbone(pooling)
    workers = available_cores()
    speeds, counts = {}, []
    for precision in ["float32"] + (["bfloat16"] if supports_bfloat16(spec) else []):
        on_progress(step(f"timing {card.name} at {card.preprocess.height} in {precision}", 0, 0))
        n_images = _enough(spec, precision, workers)
        speed, n_embedded = _embed(spec, precision, source, scratch / f"{card.file}-{precision}", n_images, workers)
        speeds[precision] = speed
        counts.append(n_embedded)
    is_random = card.weights_sha256 == "random"
    measured = Speed(
        model=card.name,
        size=card.preprocess.height,
        n_features=spec.n_features,
        n_parameters=card.n_parameters,
        images_per_second=speeds,
        n_images=min(counts),
        weights="random" if is_random else card.source,
        cpu=cpu_name(),
        workers=workers,
        pictures=description,
    )
    store.write_note(
        card.file, store.SPEED, {"images_per_second": speeds, "cpu": measured.cpu, "pictures": description}
    )
    return measured


def _enough(spec: Any, precision: str, workers: int) -> int:
    """Return the number of images that take a few seconds, from a batch on one core."""
    import numpy as np

    backbone = load_backbone(spec, precision)
    steps = spec.preprocess
    batch = np.full((backbone.batch_size, steps.height, steps.width, 3), 128, steps.dtype)
    backbone(batch)
    started = time.perf_counter()
    backbone(batch)
    speed = backbone.batch_size / (time.perf_counter() - started) * workers
    return max(_LEAST * workers, int(speed * _SECONDS))


def _embed(spec: Any, precision: str, source: str, out: Path, n_images: int, workers: int) -> tuple[float, int]:
    """Embed pictures, and give images a second between the first news of progress and the last."""
    message: list[tuple[float, int]] = []

    def on_message(progress: Progress) -> None:
        done = progress.embedded + progress.failed
        if done and (not message or done != message[-1][1]):
            message.append((time.perf_counter(), done))

    settings = Settings.from_options(
        pooling=spec.pooling,
        precision=precision,
        limit=n_images,
        workers=workers,
        max_failures=1.0,
        images_per_part=max(8, n_images // (8 * workers) // 8 * 8),
    )
    plan = verbs.draft_plan(verbs.Request(source, str(out), settings), spec)
    features = verbs.run_plan(plan, on_progress=on_message)
    assert features.summary is not None
    (began, first), (ended, last) = message[0], message[-1]
    if last == first:  # too few pictures: the whole run must do
        return features.summary.images_per_second, last
    return (last - first) / (ended - began), last
