"""Measure how many images per second each model embeds on this machine, with whole runs of `embed`."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from featurepress.demo.orchard import draw_images
from featurepress.ledger.provenance import cpu_name
from featurepress.models import store
from featurepress.models.backbone import load_backbone, supports_bfloat16
from featurepress.models.card import ModelCard
from featurepress.models.catalog import CARDS, find_architecture, find_card, looks_like_a_path
from featurepress.models.origins import keras_applications
from featurepress.progress import OnProgress, Progress, show_progress, step
from featurepress.runs import verbs
from featurepress.settings import Settings, available_cores
from featurepress.specs import BackboneSpec

_SECONDS = 4.0  # of embedding per run
_N_DRAWN, _N_COPIES = 2_000, 10
_MIN_IMAGES_PER_WORKER = 32


@dataclass(frozen=True)
class Speed:
    """The measured speed of one model."""

    model: str
    size: int  # side of its input in pixels
    n_features: int  # with pooling avg
    n_parameters: int
    images_per_second: dict[str, float]  # by precision, over all workers
    n_images: int  # per run, at least
    weights: str  # "random", or where they come from
    cpu: str
    workers: int  # one per core
    images: str  # what was embedded


def bench(
    models: Sequence[str] = (),
    *,
    images: str | Path | None = None,
    size: int | None = None,
    random: bool = False,
    progress: bool | OnProgress = True,
) -> list[Speed]:
    """Measure the speed of models, one after the other.

    Parameters
    ----------
    models : sequence of str
        As for `embed`; by default all stored models.
    images : str or path, optional
        Images to embed; by default 2,000 drawn ones of 100x100.
    size : int, optional
        Side of the input in pixels, for models that leave a choice.
    random : bool
        Use random weights for models of Keras Applications that are not stored. Nothing is downloaded, and the
        speed is the same.
    progress : bool or callable
        True shows one line in a terminal or notebook. A callable gets a `Progress`.

    Returns
    -------
    list of Speed
        Also stored with the models, for ``models list``.
    """
    with (
        show_progress(progress) as on_progress,
        tempfile.TemporaryDirectory(prefix="featurepress-bench-") as scratch,
    ):
        cards = [_card(name, size, random, on_progress) for name in models] or [*CARDS, *store.stored_cards()]
        source, description = str(images), str(images)
        if images is None:
            source, description = f"{scratch}/images", f"{_N_DRAWN:,} drawn images of 100x100, repeated"
            _draw(Path(source))
        return [_measure(card, source, description, Path(scratch), on_progress) for card in cards]


def _draw(folder: Path) -> None:
    """Draw images, and link them under further names, until there are enough for the fastest model."""
    drawn = draw_images(folder / "0", _N_DRAWN)
    for copy in range(1, _N_COPIES):
        for path in drawn:
            link = folder / str(copy) / path.relative_to(folder / "0")
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
    spec = card.backbone(card.pooled if card.pooled in ("avg", "max") else "avg")
    workers = available_cores()
    speeds, counts = {}, []
    for precision in ["float32"] + (["bfloat16"] if supports_bfloat16(spec) else []):
        on_progress(step(f"timing {card.name} at {card.preprocess.height} in {precision}"))
        out, n_images = scratch / f"{card.file}-{precision}", _enough_images(spec, precision, workers)
        speeds[precision], n_embedded = _embed(spec, precision, source, out, n_images, workers)
        counts.append(n_embedded)
    note = {"images_per_second": speeds, "cpu": cpu_name(), "images": description}
    store.write_note(card.file, store.SPEED, note)
    return Speed(
        model=card.name,
        size=card.preprocess.height,
        n_features=spec.n_features,
        n_parameters=card.n_parameters,
        n_images=min(counts),
        weights="random" if card.weights_sha256 == "random" else card.source,
        workers=workers,
        images_per_second=speeds,
        cpu=cpu_name(),
        images=description,
    )


def _enough_images(spec: BackboneSpec, precision: str, workers: int) -> int:
    """Return the number of images that take a few seconds, from the time of a batch on one core."""
    backbone = load_backbone(spec, precision)
    steps = spec.preprocess
    batch = np.full((backbone.batch_size, steps.height, steps.width, 3), 128, steps.dtype)
    backbone(batch)
    started = time.perf_counter()
    backbone(batch)
    speed = backbone.batch_size / (time.perf_counter() - started) * workers
    return max(_MIN_IMAGES_PER_WORKER * workers, int(speed * _SECONDS))


def _embed(
    spec: BackboneSpec, precision: str, source: str, out: Path, n_images: int, workers: int
) -> tuple[float, int]:
    """Return images per second between the first and the last report of progress, and the number of images."""
    reports: list[tuple[float, int]] = []

    def on_progress(progress: Progress) -> None:
        done = progress.embedded + progress.failed
        if done and (not reports or done != reports[-1][1]):
            reports.append((time.perf_counter(), done))

    settings = Settings.from_options(
        pooling=spec.pooling,
        precision=precision,
        limit=n_images,
        workers=workers,
        max_failures=1.0,
        images_per_part=max(8, n_images // (8 * workers) // 8 * 8),
    )
    plan = verbs.draft_plan(verbs.Request(source, str(out), settings), spec)
    features = verbs.run_plan(plan, on_progress=on_progress)
    assert features.summary is not None
    (began, first), (ended, last) = reports[0], reports[-1]
    if last == first:  # too few images: take the speed of the whole run
        return features.summary.images_per_second, last
    return (last - first) / (ended - began), last
