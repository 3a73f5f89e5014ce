"""Predict several labels per image, with boxes: for the cells of the model's grid, and for overlapping crops.

A classifier of averaged features also classifies a single cell of the grid, whose features are of the same kind,
and a crop, which is an image. Boxes are in pixels of the image. Modules that read and embed images are imported
where they run, to keep the driver light.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from featurepress.errors import AnalysisError, DestinationError, PlanMismatchError
from featurepress.features.feature_set import FeatureSet
from featurepress.learning import predictions
from featurepress.learning.model import TrainedModel
from featurepress.learning.predictions import UNKNOWN, Tally
from featurepress.ledger import Plan
from featurepress.ledger.names import annotated_name, part_name, shard_of
from featurepress.process import send_message
from featurepress.settings import PredictionSettings
from featurepress.specs import BackboneSpec, PreprocessSpec
from featurepress.storage import Storage, is_below

if TYPE_CHECKING:
    import numpy.typing as npt

    from featurepress.specs import Features, Pixels

    Probabilities = npt.NDArray[np.float32]  # (..., n_classes), as written
    Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels; the last two exclusive

BACKGROUND = "background"  # the label of regions without an object; never written
TILE_SHARES = (0.5, 0.35, 0.25)  # sides of the crops, as shares of the shorter side of the image
THRESHOLDS = {"cell": 0.5, "tile": 0.8}  # measured: docs/how-to/predict.md
MAX_OVERLAP = 0.3  # of the smaller of two boxes with a label; above it the less probable one is dropped
_MAX_TILES_ALONG = 100  # non-overlapping tiles of a size along a side; tiles of a narrow image are wider
_TILE_BATCH = 64
_BATCH_ROWS = 256
_NAME_BYTES = 120  # of an image's name in the name of its annotated copy: file systems allow 255 in all


class Region(NamedTuple):
    """A labelled box in pixels of the image; right and bottom are exclusive."""

    label: str
    probability: float
    left: int
    top: int
    right: int
    bottom: int
    kind: str


@dataclass
class ImageRegions:
    """The regions of an image.

    Attributes
    ----------
    regions : list of Region
        Those that reach the threshold.
    highest : float
        The highest probability of any label in any region.
    is_read : bool
        Whether the image could be read again, where that was needed.
    """

    regions: list[Region]
    highest: float
    is_read: bool = True

    def rows(self, width: int, height: int) -> list[Region]:
        """Return the regions, the most probable first; without regions, the whole image as unknown."""
        if not self.regions:
            kind = "image" if self.is_read else "unread"
            return [Region(UNKNOWN, self.highest, 0, 0, width, height, kind)]
        return sorted(self.regions, key=_by_probability)


# -- which models and features have regions -----------------------------------------------------------------


def averaged(backbone: BackboneSpec) -> BackboneSpec:
    """Return the backbone that averages the same grid."""
    return replace(backbone, pooling="avg", projection={})


def pooling_of(settings: PredictionSettings, model: TrainedModel) -> str:
    """Return the pooling with which images are embedded.

    Raises
    ------
    AnalysisError
        Regions need a model of averaged features.
    """
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
    """Refuse a feature set whose regions the model cannot classify.

    Raises
    ------
    PlanMismatchError
        It is of another backbone, or cells were requested and its features are not a grid.
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
    """Refuse a destination where an update of the features would list the annotated copies as images.

    Raises
    ------
    DestinationError
        It is inside a source of the set.
    """
    from featurepress.features.feature_set import embedded_set

    for source in embedded_set(features).plan.sources:
        where = source.location if "://" in source.location else str(PurePosixPath(source.base, source.location))
        if is_below(storage.location, where.partition("**")[0]):
            raise DestinationError(
                f"'{storage.location}' is inside '{where}', a source of '{features.location}'. The next update of "
                "that set would embed the annotated copies. Choose another --out."
            )


# -- cells ---------------------------------------------------------------------------------------------------


def cells_of(
    probabilities: Probabilities, labels: npt.NDArray[np.str_], threshold: float, boxes: Sequence[Any]
) -> list[Region]:
    """Merge neighbouring cells with the same label into boxes.

    Parameters
    ----------
    probabilities : array (height, width, n_classes)
        Of each cell.
    labels : array (n_classes,) of str
        The labels.
    threshold : float
        Cells without a probability of at least this are ignored.
    boxes : sequence of sequence of tuple
        Box of each cell in pixels, row by row.
    """
    best, highest = probabilities.argmax(axis=2), probabilities.max(axis=2)
    remaining = {
        (i, j) for i, j in np.ndindex(best.shape) if highest[i, j] >= threshold and labels[best[i, j]] != BACKGROUND
    }
    regions = []
    while remaining:
        group, queue = [], [min(remaining)]
        remaining.discard(queue[0])
        while queue:
            i, j = queue.pop()
            group.append((i, j))
            for cell in ((i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1)):
                if cell in remaining and best[cell] == best[i, j]:
                    remaining.discard(cell)
                    queue.append(cell)
        lefts, tops, rights, bottoms = zip(*(boxes[i][j] for i, j in group), strict=True)
        box = min(lefts), min(tops), max(rights), max(bottoms)
        label, probability = str(labels[best[group[0]]]), max(highest[cell] for cell in group)
        regions.append(Region(label, float(probability), *box, "cell"))
    return regions


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


# -- tiles ---------------------------------------------------------------------------------------------------


def tile_boxes(width: int, height: int) -> list[Box]:
    """Return overlapping squares that cover an image: for each of `TILE_SHARES`, at most half a side apart.

    On an image much longer than wide the tiles are longer, too, so that their number stays below 4,000.
    """
    boxes = []
    squares = [max(1, round(min(width, height) * share)) for share in TILE_SHARES]
    for square in dict.fromkeys(squares):
        across, down = (max(square, math.ceil(size / _MAX_TILES_ALONG)) for size in (width, height))
        lows = [
            np.linspace(0, size - side, math.ceil(2 * (size - side) / side) + 1).round().astype(int).tolist()
            for size, side in ((height, down), (width, across))
        ]
        boxes += [(x, y, x + across, y + down) for y in lows[0] for x in lows[1]]
    return list(dict.fromkeys(boxes))


def strongest(regions: Sequence[Region]) -> list[Region]:
    """Drop boxes that overlap with a more probable box of the same label."""
    kept: list[Region] = []
    for region in sorted(regions, key=_by_probability):
        if all(region.label != better.label or _overlap(region, better) <= MAX_OVERLAP for better in kept):
            kept.append(region)
    return kept


def _by_probability(region: Region) -> tuple[Any, ...]:
    return (-region.probability, *region[2:])


def _overlap(a: Region, b: Region) -> float:
    """Return the area that two boxes share, as a share of the smaller one."""
    width = min(a.right, b.right) - max(a.left, b.left)
    height = min(a.bottom, b.bottom) - max(a.top, b.top)
    areas = [(box.right - box.left) * (box.bottom - box.top) for box in (a, b)]
    return max(0, width) * max(0, height) / min(areas)


# -- a part --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RegionPart:
    """The task that predicts the regions of the images of a part.

    Parameters
    ----------
    storage : Storage
        The destination, which holds a copy of the model.
    model : str
        Hash of the model.
    settings : PredictionSettings
        Of the prediction.
    annotated : frozenset of int
        The parts with annotated copies from an earlier attempt, perhaps of images that were deleted since.
    """

    storage: Storage
    model: str
    settings: PredictionSettings
    annotated: frozenset[int] = frozenset()

    def __call__(self, plan: Plan, shard: int) -> int:
        """Predict the regions of part number `shard` of the feature set of `plan`; return the number of rows."""
        features, name = FeatureSet(plan, None), part_name(shard)
        model = predictions.copied_model(self.storage, self.model)
        tally = Tally(features.part_digest(name))
        regions: dict[str, ImageRegions] = {}
        sizes: list[tuple[str, int, int]] = []
        for X, batch in features.part_batches(name, ["uri", "width", "height"], _BATCH_ROWS):
            rows = list(zip(*(column.to_pylist() for column in batch.columns), strict=True))
            sizes += rows
            if self.settings.regions:
                cells = self._cells(model, plan, X, rows)
            else:
                cells = [ImageRegions([], 0.0) for _ in rows]
            regions.update(zip((uri for uri, _, _ in rows), cells, strict=True))
            send_message(("rows", 0))
        if self.settings.tiles or self.settings.annotate:
            self._read_images(model, features, name, regions)
            tally.unread = sum(not image.is_read for image in regions.values())
        self._write(shard, sizes, regions, tally)
        return tally.rows

    def _threshold(self, kind: str) -> float:
        return THRESHOLDS[kind] if self.settings.threshold is None else self.settings.threshold

    def _cells(self, model: TrainedModel, plan: Plan, X: Features, sizes: Sequence[Any]) -> list[ImageRegions]:
        """Return the regions of some images, from their cells."""
        rows, columns, channels = plan.backbone.grid
        probabilities = _probabilities(model, X.reshape(-1, channels)).reshape(len(X), rows, columns, -1)
        images = []
        for grid, (_, width, height) in zip(probabilities, sizes, strict=True):
            boxes = cell_boxes(width, height, (rows, columns), plan.backbone.preprocess)
            cells = cells_of(grid, model.labels, self._threshold("cell"), boxes)
            images.append(ImageRegions(cells, float(grid.max())))
        return images

    def _read_images(
        self, model: TrainedModel, features: FeatureSet, name: str, regions: dict[str, ImageRegions]
    ) -> None:
        """Read the images of a part again; predict their tiles, and write annotated copies."""
        from featurepress.embedding.originals import read_part_originals
        from featurepress.features.feature_set import embedded_set
        from featurepress.images.annotate import annotate
        from featurepress.models.backbone import fetch_model

        plan, shard = features.plan, shard_of(name)
        fetch_model(plan.backbone, plan.storage)
        names = {uri: annotated_name(shard, i, _plain(uri)) for i, uri in enumerate(regions)}
        unread = set(regions)
        for uri, pixels in read_part_originals(embedded_set(features).plan, name):
            if uri in regions:
                unread.discard(uri)
                if self.settings.tiles:
                    self._add_tiles(model, plan, pixels, regions[uri])
                if self.settings.annotate:
                    boxes = [(box[2:6], f"{box.label} {box.probability:.2f}") for box in regions[uri].regions]
                    self.storage.write(names[uri], annotate(pixels, boxes))
            send_message(("rows", 1))
        for uri in unread:
            regions[uri].is_read = False
        if shard in self.annotated:
            # Last, and only copies of other images: another attempt at this part may still be running.
            written = {names[uri] for uri in regions if uri not in unread}
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

    def _write(self, shard: int, sizes: Sequence[Any], regions: dict[str, ImageRegions], tally: Tally) -> None:
        """Write the rows of a part in the order of the features, and its receipt."""
        import pyarrow as pa

        names = predictions.columns_of(asdict(self.settings))
        schema = predictions.schema_of(names)
        with predictions.part_writer(self.storage, shard, schema, self.settings.file_format) as write:
            for start in range(0, len(sizes), _BATCH_ROWS):
                images = sizes[start : start + _BATCH_ROWS]
                rows = [(uri, *region) for uri, *size in images for region in regions[uri].rows(*size)]
                columns = map(list, zip(*rows, strict=True))
                write(pa.table(dict(zip(names, columns, strict=True)), schema=schema))
                tally.add([row[1] for row in rows], len(images))
        predictions.write_receipt(self.storage, shard, tally.to_receipt(self.model))


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
    stem = PurePosixPath(uri.partition("?")[0]).stem
    plain = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in stem)
    return plain.encode()[-_NAME_BYTES:].decode(errors="ignore")
