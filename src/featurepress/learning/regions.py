"""Where on a picture which label is found: the cells of the model's grid, and overlapping crops.

A classifier of averaged features tells a cell of the grid as well, whose numbers are of the same kind, and a crop,
which is a picture of its own. What is found is given as boxes in pixels of the picture. What reads and embeds
pictures is imported where it runs, so that the driver stays light.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
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

    Shares = npt.NDArray[np.float32]  # (..., n_classes): probabilities, as they are written
    Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels; the last two exclusive

COLUMNS = ["uri", "label", "probability", "left", "top", "right", "bottom", "kind"]
BACKGROUND = "background"  # a label that is told of what holds nothing, and is never given
TILE_SHARES = (0.5, 0.35, 0.25)  # sides of the crops, of the shorter side of the picture
THRESHOLDS = {"cell": 0.5, "tile": 0.8}  # measured: docs/how-to/predict.md
MOST_COMMON = 0.3  # share of the smaller of two boxes of a label above which the weaker one is dropped
_MOST_ALONG = 100  # as many tiles of a size beside one another, at most twice: of a narrow picture they are wider
_TILES_AT_ONCE = 64
_BATCH_ROWS = 256
_NAME_BYTES = 120  # of a picture's name in that of its annotated copy: file systems allow 255 in all


class Region(NamedTuple):
    """A box in pixels of the picture, right and bottom exclusive, and what is in it."""

    label: str
    probability: float
    left: int
    top: int
    right: int
    bottom: int
    kind: str


@dataclass
class Found:
    """What is found on a picture: the regions, the highest probability of any label, reported or not.

    `is_read` says whether the picture could be read again, where that was needed.
    """

    regions: list[Region]
    highest: float
    is_read: bool = True

    def rows(self, width: int, height: int) -> list[Region]:
        """Give the regions, the most probable first; of a picture with none the whole, as unknown."""
        if not self.regions:
            kind = "picture" if self.is_read else "unread"
            return [Region(UNKNOWN, self.highest, 0, 0, width, height, kind)]
        return sorted(self.regions, key=lambda one: (-one.probability, *one[2:]))


# -- what a model can tell -----------------------------------------------------------------------------------


def averaged(backbone: BackboneSpec) -> BackboneSpec:
    """Give the backbone that averages the same grid."""
    return replace(backbone, pooling="avg", projection={})


def pooling_of(asked: PredictionSettings, model: TrainedModel) -> str:
    """Give the pooling with which pictures are embedded.

    Raises
    ------
    AnalysisError
        The model does not know averaged features.
    """
    own = model.backbone.pooling
    if not (asked.regions or asked.tiles):
        return own
    if own != "avg":
        raise AnalysisError(
            f"Regions are told by a model of averaged features (--pooling avg); '{model.location}' knows those of "
            f"'{own}'. Train one on features that were embedded with --pooling avg."
        )
    return "flatten" if asked.regions else own


def require_regions(asked: PredictionSettings, model: TrainedModel, features: FeatureSet) -> None:
    """Refuse a feature set of which the model cannot tell regions.

    Raises
    ------
    PlanMismatchError
        It is of another model, or of features that are no grid.
    """
    backbone = features.plan.backbone
    if differences := averaged(model.backbone).differences(averaged(backbone)):
        raise PlanMismatchError(
            f"The model '{model.location}' cannot tell the features of '{features.location}'; it knows features "
            f"with {'; '.join(differences)}. Predict from the pictures."
        )
    if asked.regions and (backbone.pooling != "flatten" or backbone.projection):
        raise PlanMismatchError(
            f"The features of '{features.location}' are no grid: cells (--regions) are told of sets that were "
            "embedded with --pooling flatten. Predict from the pictures, or give --tiles instead of --regions."
        )


def require_apart(storage: Storage, features: FeatureSet) -> None:
    """Refuse a destination in which annotated copies would be taken for pictures of the features.

    Raises
    ------
    DestinationError
        It lies in a source of the set.
    """
    from featurepress.features.feature_set import embedded_set

    for source in embedded_set(features).plan.sources:
        where = source.location if "://" in source.location else str(PurePosixPath(source.base, source.location))
        if is_below(storage.location, where.partition("**")[0]):
            raise DestinationError(
                f"'{storage.location}' lies in '{where}', whose pictures '{features.location}' was made of: its "
                "next update would take the annotated copies for pictures. Choose another --out."
            )


# -- cells ---------------------------------------------------------------------------------------------------


def cells_of(shares: Shares, labels: npt.NDArray[np.str_], threshold: float, boxes: Sequence[Any]) -> list[Region]:
    """Join the cells of a grid that are told the same to boxes.

    Parameters
    ----------
    shares : array (height, width, n_classes)
        The probabilities in each cell.
    labels : array (n_classes,) of str
        Their labels.
    threshold : float
        Cells in which no probability reaches it are nothing.
    boxes : sequence of sequence of tuple
        Box of each cell in pixels, row by row.
    """
    best, heights = shares.argmax(axis=2), shares.max(axis=2)
    left = {
        (i, j) for i, j in np.ndindex(best.shape) if heights[i, j] >= threshold and labels[best[i, j]] != BACKGROUND
    }
    found = []
    while left:
        group, near = [], [min(left)]
        left.discard(near[0])
        while near:
            i, j = near.pop()
            group.append((i, j))
            for cell in ((i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1)):
                if cell in left and best[cell] == best[i, j]:
                    left.discard(cell)
                    near.append(cell)
        lefts, tops, rights, bottoms = zip(*(boxes[i][j] for i, j in group), strict=True)
        box = min(lefts), min(tops), max(rights), max(bottoms)
        label, share = str(labels[best[group[0]]]), max(heights[cell] for cell in group)
        found.append(Region(label, float(share), *box, "cell"))
    return found


def cell_boxes(width: int, height: int, grid: tuple[int, int], steps: PreprocessSpec) -> list[list[Any]]:
    """Give the box of each cell of a grid (rows, columns) in a picture of so many pixels, row by row.

    Of a picture that was stretched the cells cover all, of one that was cropped the middle that was kept.
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
    """Give overlapping squares that cover a picture: of each of `TILE_SHARES`, half a side apart at most.

    Of a picture that is far longer than wide they are no squares, so that there are some thousand at most.
    """
    boxes = []
    squares = [max(1, round(min(width, height) * share)) for share in TILE_SHARES]
    for square in dict.fromkeys(squares):
        across, down = (max(square, math.ceil(size / _MOST_ALONG)) for size in (width, height))
        lows = [
            np.linspace(0, size - side, math.ceil(2 * (size - side) / side) + 1).round().astype(int).tolist()
            for size, side in ((height, down), (width, across))
        ]
        boxes += [(x, y, x + across, y + down) for y in lows[0] for x in lows[1]]
    return list(dict.fromkeys(boxes))


def strongest(regions: Sequence[Region]) -> list[Region]:
    """Drop boxes that have much in common with a more probable one of the same label."""
    kept: list[Region] = []
    for one in sorted(regions, key=lambda one: (-one.probability, *one[2:])):
        if all(one.label != other.label or _in_common(one, other) <= MOST_COMMON for other in kept):
            kept.append(one)
    return kept


def _in_common(one: Region, other: Region) -> float:
    """Give the share of the smaller of two boxes that lies in the other."""
    width = min(one.right, other.right) - max(one.left, other.left)
    height = min(one.bottom, other.bottom) - max(one.top, other.top)
    areas = [(box.right - box.left) * (box.bottom - box.top) for box in (one, other)]
    return max(0, width) * max(0, height) / min(areas)


# -- a part --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RegionPart:
    """The task that tells the regions of the pictures of a part.

    Parameters
    ----------
    storage : Storage
        The destination, in which the model lies already.
    model : str
        Its sha256.
    asked : PredictionSettings
        What is told.
    drawn : frozenset of int
        The parts of which there are annotated copies already, perhaps of pictures that are gone.
    """

    storage: Storage
    model: str
    asked: PredictionSettings
    drawn: frozenset[int] = frozenset()

    def __call__(self, plan: Plan, shard: int) -> int:
        """Tell the regions of part number `shard` of the feature set of `plan`; give the number of rows."""
        features, name = FeatureSet(plan, None), part_name(shard)
        model = predictions.brought(self.storage, self.model)
        tally = Tally(features.part_digest(name))
        found: dict[str, Found] = {}
        sizes: list[tuple[str, int, int]] = []
        for X, batch in features.part_batches(name, ["uri", "width", "height"], _BATCH_ROWS):
            some = list(zip(*(column.to_pylist() for column in batch.columns), strict=True))
            sizes += some
            cells = self._cells(model, plan, X, some) if self.asked.regions else [Found([], 0.0) for _ in some]
            found.update(zip((uri for uri, _, _ in some), cells, strict=True))
            send_message(("rows", 0))
        if self.asked.tiles or self.asked.annotate:
            self._look(model, features, name, found)
            tally.unread = sum(not one.is_read for one in found.values())
        self._write(shard, sizes, found, tally)
        return tally.rows

    def _threshold(self, kind: str) -> float:
        return THRESHOLDS[kind] if self.asked.threshold is None else self.asked.threshold

    def _cells(self, model: TrainedModel, plan: Plan, X: Features, sizes: Sequence[Any]) -> list[Found]:
        """Tell the cells of some pictures."""
        rows, columns, channels = plan.backbone.grid
        shares = _told(model, X.reshape(-1, channels)).reshape(len(X), rows, columns, -1)
        told = []
        for one, (_, width, height) in zip(shares, sizes, strict=True):
            boxes = cell_boxes(width, height, (rows, columns), plan.backbone.preprocess)
            told.append(Found(cells_of(one, model.labels, self._threshold("cell"), boxes), float(one.max())))
        return told

    def _look(self, model: TrainedModel, features: FeatureSet, name: str, found: dict[str, Found]) -> None:
        """Read the pictures of a part again, tell their tiles, and draw what was found into copies of them."""
        from featurepress.embedding.originals import read_part_originals
        from featurepress.features.feature_set import embedded_set
        from featurepress.images.annotate import annotate
        from featurepress.models.backbone import fetch_model

        plan, shard = features.plan, shard_of(name)
        fetch_model(plan.backbone, plan.storage)
        names = {uri: annotated_name(shard, i, _plain(uri)) for i, uri in enumerate(found)}
        unread = set(found)
        for uri, pixels in read_part_originals(embedded_set(features).plan, name):
            if uri in found:
                unread.discard(uri)
                if self.asked.tiles:
                    self._add_tiles(model, plan, pixels, found[uri])
                if self.asked.annotate:
                    boxes = [(one[2:6], f"{one.label} {one.probability:.2f}") for one in found[uri].regions]
                    self.storage.write(names[uri], annotate(pixels, boxes))
            send_message(("rows", 1))
        for uri in unread:
            found[uri].is_read = False
        if shard in self.drawn:
            # Last, and no copy that another attempt has written: that one may be the last that ends.
            predictions.forget_annotated(self.storage, {shard}, {names[uri] for uri in found if uri not in unread})

    def _add_tiles(self, model: TrainedModel, plan: Plan, pixels: Pixels, found: Found) -> None:
        """Tell the tiles of a picture."""
        threshold, regions = self._threshold("tile"), []
        for boxes, shares in _tiles(model, plan, pixels):
            found.highest = max(found.highest, float(shares.max()))
            for box, best, share in zip(boxes, shares.argmax(axis=1), shares.max(axis=1), strict=True):
                label = str(model.labels[best])
                if share >= threshold and label != BACKGROUND:
                    regions.append(Region(label, float(share), *box, "tile"))
            send_message(("rows", 0))
        found.regions += strongest(regions)

    def _write(self, shard: int, sizes: Sequence[Any], found: dict[str, Found], tally: Tally) -> None:
        """Write the rows of a part in the order of the features, and its receipt."""
        import pyarrow as pa

        schema = predictions.schema_of(COLUMNS)
        with predictions.writing(self.storage, shard, schema, self.asked.format) as write:
            for start in range(0, len(sizes), _BATCH_ROWS):
                some = sizes[start : start + _BATCH_ROWS]
                rows = [(uri, *one) for uri, width, height in some for one in found[uri].rows(width, height)]
                columns = list(zip(*rows, strict=True))
                write(pa.table(dict(zip(COLUMNS, map(list, columns), strict=True)), schema=schema))
                tally.add([row[1] for row in rows], len(some))
        predictions.write_receipt(self.storage, shard, tally.to_json({"model": self.model}))


def _tiles(model: TrainedModel, plan: Plan, pixels: Pixels) -> Iterator[tuple[list[Box], Shares]]:
    """Yield the crops of a picture, some at a time, with the probabilities in each."""
    from featurepress.embedding.inference import embed_images

    boxes = tile_boxes(pixels.shape[1], pixels.shape[0])
    for start in range(0, len(boxes), _TILES_AT_ONCE):
        some = boxes[start : start + _TILES_AT_ONCE]
        crops = [np.ascontiguousarray(pixels[top:bottom, left:right]) for left, top, right, bottom in some]
        yield some, _told(model, embed_images(averaged(plan.backbone), plan.precision, crops))


def _told(model: TrainedModel, X: Features) -> Shares:
    """Give the probabilities of features of the model's backbone, averaged or of a single cell."""
    shares = model.classifier.predict_proba(X if model.projection is None else model.projection.transform(X))
    return shares.astype(np.float32)


def _plain(uri: str) -> str:
    """Give the end of a uri as a file's name can be anywhere."""
    stem = PurePosixPath(uri.partition("?")[0]).stem
    plain = "".join(one if one.isalnum() or one in "-_." else "_" for one in stem)
    return plain.encode()[-_NAME_BYTES:].decode(errors="ignore")
