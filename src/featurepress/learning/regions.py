"""Predict several labels per image, with boxes: for the cells of the model's grid, and for overlapping crops.

A classifier of averaged features also classifies a single cell of the grid, whose features are of the same kind,
and a crop, which is an image. Modules that read and embed images are imported where they run, to keep the driver
light.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from featurepress.analysis.boxes import BACKGROUND, Region, by_probability, cells_of, strongest, tile_boxes
from featurepress.errors import AnalysisError, DestinationError, PlanMismatchError
from featurepress.features.feature_set import FeatureSet, embedded_set
from featurepress.features.parts import part_batches
from featurepress.learning import predictions
from featurepress.learning.model import TrainedModel
from featurepress.learning.predictions import UNKNOWN
from featurepress.learning.tasks import PredictionTask
from featurepress.ledger import Plan
from featurepress.ledger.names import annotated_name, part_name
from featurepress.process import send_message
from featurepress.settings import PredictionSettings
from featurepress.specs import BackboneSpec, PreprocessSpec
from featurepress.storage import Storage, is_below

if TYPE_CHECKING:
    from featurepress.analysis.boxes import Box, Probabilities
    from featurepress.learning.tasks import Batch
    from featurepress.specs import Features, Pixels

THRESHOLDS = {"cell": 0.5, "tile": 0.8}  # measured: docs/how-to/predict.md
_TILE_BATCH = 64
_BATCH_ROWS = 256
_NAME_BYTES = 120  # of an image's name in the name of its annotated copy: file systems allow 255 in all


@dataclass
class ImageRegions:
    """The regions of an image.

    Attributes
    ----------
    width, height : int
        Size of the image in pixels.
    regions : list of Region
        Those that reach the threshold.
    highest : float
        The highest probability of any label in any region.
    is_read : bool
        Whether the image could be read again, where that was needed.
    """

    width: int
    height: int
    regions: list[Region] = field(default_factory=list)
    highest: float = 0.0
    is_read: bool = True

    def rows(self) -> list[Region]:
        """Return the regions, the most probable first; without regions, the whole image as unknown."""
        if not self.regions:
            kind = "image" if self.is_read else "unread"
            return [Region(UNKNOWN, self.highest, 0, 0, self.width, self.height, kind)]
        return sorted(self.regions, key=by_probability)


# -- which models and features have regions -----------------------------------------------------------------


def averaged(backbone: BackboneSpec) -> BackboneSpec:
    """Return the backbone that averages the same grid."""
    return replace(backbone, pooling="avg", projection={})


def pooling_of(settings: PredictionSettings, model: TrainedModel) -> str:
    """Return the pooling with which images are embedded; AnalysisError if regions need another model."""
    own = model.backbone.pooling
    if not (settings.regions or settings.tiles):
        return own
    if own != "avg":
        raise AnalysisError(
            f"Regions need a model of averaged features (--pooling avg). The pooling of '{model.location}' is "
            f"'{own}'. Train a model on features embedded with --pooling avg."
        )
    return "flatten" if settings.regions else own


def require_regions(settings: PredictionSettings, model: TrainedModel, features: FeatureSet) -> None:
    """Raise PlanMismatchError if the model cannot classify the regions of a feature set.

    It must be of the same backbone, and its features a grid if cells were requested.
    """
    backbone = features.plan.backbone
    if differences := averaged(model.backbone).differences(averaged(backbone)):
        raise PlanMismatchError(
            f"The model '{model.location}' does not fit the features of '{features.location}'. It needs features "
            f"with {'; '.join(differences)}. Predict from the images."
        )
    if settings.regions and (backbone.pooling != "flatten" or backbone.projection):
        raise PlanMismatchError(
            f"The features of '{features.location}' are not a grid. Cells (--regions) need features embedded with "
            "--pooling flatten. Predict from the images, or use --tiles instead of --regions."
        )


def require_apart(storage: Storage, features: FeatureSet) -> None:
    """Raise DestinationError if an update of the features would list the annotated copies as images.

    That is a destination inside a source of the set.
    """
    for source in embedded_set(features).plan.sources:
        folder = source.location if "://" in source.location else str(PurePosixPath(source.base, source.location))
        if is_below(storage.location, folder.partition("**")[0]):
            raise DestinationError(
                f"'{storage.location}' is inside '{folder}', a source of '{features.location}'. The next update of "
                "that set would embed the annotated copies. Choose another --out."
            )


def cell_boxes(width: int, height: int, grid: tuple[int, int], steps: PreprocessSpec) -> list[list[Any]]:
    """Return the box of each cell of a grid (rows, columns) in pixels of the image, row by row.

    The cells of a stretched image cover all of it; those of a cropped image cover the part that was kept.
    """
    from featurepress.images.preprocess import spans

    edges = []
    for span, size, n in zip(spans(height, width, steps), (height, width), grid, strict=True):
        kept = (span.start + (span.stop - span.start) * np.arange(n + 1) / n) * size / span.of
        edges.append(np.clip(kept.round().astype(int), 0, size).tolist())
    down, across = edges
    return [[(x, y, x2, y2) for x, x2 in itertools.pairwise(across)] for y, y2 in itertools.pairwise(down)]


# -- a part --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RegionTask(PredictionTask):
    """The task that predicts the regions of the images of a part.

    Parameters
    ----------
    annotated : frozenset of int
        The parts with annotated copies from an earlier attempt, perhaps of images that were deleted since.
    """

    annotated: frozenset[int] = frozenset()

    def batches(self, model: TrainedModel, plan: Plan, shard: int) -> Iterator[Batch]:
        """Yield the regions of each image."""
        images: dict[str, ImageRegions] = {}
        for X, batch in part_batches(plan, part_name(shard), ["uri", "width", "height"], _BATCH_ROWS):
            uris, widths, heights = (column.to_pylist() for column in batch.columns)
            new = [ImageRegions(*size) for size in zip(widths, heights, strict=True)]
            if self.settings.regions:
                self._add_cells(model, plan, X, new)
            images.update(zip(uris, new, strict=True))
            send_message(("rows", 0))
        if self.settings.tiles or self.settings.annotate:
            self._read_images(model, plan, shard, images)
        items = list(images.items())
        for start in range(0, len(items), _BATCH_ROWS):
            batch_items = items[start : start + _BATCH_ROWS]
            rows = [(uri, *region) for uri, image in batch_items for region in image.rows()]
            n_unread = sum(not image.is_read for _, image in batch_items)
            yield [list(column) for column in zip(*rows, strict=True)], len(batch_items), n_unread

    def _threshold(self, kind: str) -> float:
        return THRESHOLDS[kind] if self.settings.threshold is None else self.settings.threshold

    def _add_cells(self, model: TrainedModel, plan: Plan, X: Features, images: Sequence[ImageRegions]) -> None:
        """Add the regions of the images' cells."""
        rows, columns, channels = plan.backbone.grid
        probabilities = _probabilities(model, X.reshape(-1, channels)).reshape(len(X), rows, columns, -1)
        for grid, image in zip(probabilities, images, strict=True):
            boxes = cell_boxes(image.width, image.height, (rows, columns), plan.backbone.preprocess)
            image.regions += cells_of(grid, model.labels, self._threshold("cell"), boxes)
            image.highest = float(grid.max())

    def _read_images(self, model: TrainedModel, plan: Plan, shard: int, images: dict[str, ImageRegions]) -> None:
        """Read the images of a part again; predict their tiles, and write annotated copies."""
        from featurepress.embedding.originals import read_part_originals
        from featurepress.images.annotate import annotate
        from featurepress.models.backbone import fetch_model

        fetch_model(plan.backbone, plan.storage)
        names = {uri: annotated_name(shard, i, _plain(uri)) for i, uri in enumerate(images)}
        unread = set(images)
        for uri, pixels in read_part_originals(embedded_set(FeatureSet(plan, None)).plan, part_name(shard)):
            if uri in images:
                unread.discard(uri)
                if self.settings.tiles:
                    self._add_tiles(model, plan, pixels, images[uri])
                if self.settings.annotate:
                    boxes = [(box[2:6], f"{box.label} {box.probability:.2f}") for box in images[uri].regions]
                    self.storage.write(names[uri], annotate(pixels, boxes))
            send_message(("rows", 1))
        for uri in unread:
            images[uri].is_read = False
        if shard in self.annotated:
            # Last, and only copies of other images: another attempt at this part may still be running.
            written = {names[uri] for uri in images if uri not in unread}
            predictions.delete_annotated(self.storage, {shard}, written)

    def _add_tiles(self, model: TrainedModel, plan: Plan, pixels: Pixels, image: ImageRegions) -> None:
        """Add the regions of an image's tiles."""
        threshold, regions = self._threshold("tile"), []
        for boxes, tiles in _tiles(model, plan, pixels):
            image.highest = max(image.highest, float(tiles.max()))
            for box, best, highest in zip(boxes, tiles.argmax(axis=1), tiles.max(axis=1), strict=True):
                label = str(model.labels[best])
                if highest >= threshold and label != BACKGROUND:
                    regions.append(Region(label, float(highest), *box, "tile"))
            send_message(("rows", 0))
        image.regions += strongest(regions)


def _tiles(model: TrainedModel, plan: Plan, pixels: Pixels) -> Iterator[tuple[list[Box], Probabilities]]:
    """Yield the tiles of an image in batches, with their probabilities."""
    from featurepress.embedding.inference import embed_images

    boxes = tile_boxes(pixels.shape[1], pixels.shape[0])
    for start in range(0, len(boxes), _TILE_BATCH):
        batch = boxes[start : start + _TILE_BATCH]
        crops = [np.ascontiguousarray(pixels[top:bottom, left:right]) for left, top, right, bottom in batch]
        yield batch, _probabilities(model, embed_images(averaged(plan.backbone), plan.precision, crops))


def _probabilities(model: TrainedModel, X: Features) -> Probabilities:
    """Return the probabilities for features of the model's backbone, averaged or of a single cell."""
    Z = X if model.projection is None else model.projection.transform(X)
    return model.classifier.predict_proba(Z).astype(np.float32)


def _plain(uri: str) -> str:
    """Return the name of an image, with only characters that every file system allows."""
    plain = re.sub(r"[^\w.-]", "_", PurePosixPath(uri.partition("?")[0]).stem)
    return plain.encode()[-_NAME_BYTES:].decode(errors="ignore")
