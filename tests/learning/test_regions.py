"""Regions: several labels on one picture, with boxes that lie where the fruits are."""

from __future__ import annotations

import io
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

import featurepress as fp
from featurepress.analysis import Classifier
from featurepress.demo.orchard import draw_fruit, draw_scene
from featurepress.errors import AnalysisError, DestinationError, PlanMismatchError, SettingError, StorageError
from featurepress.images.annotate import annotate
from featurepress.learning import predictions
from featurepress.learning.model import TrainedModel, open_model
from featurepress.learning.regions import (
    BACKGROUND,
    Region,
    RegionPart,
    cell_boxes,
    cells_of,
    strongest,
    tile_boxes,
)
from featurepress.settings import PredictionSettings
from featurepress.specs import PreprocessSpec
from featurepress.storage import FolderStorage
from tests.running import embed, names_below

KINDS = ("Banana", "Kiwi", "Orange", "Plum")
ASKED: dict[str, Any] = {"model": "embedded", "precision": "float32", "pooling": "avg"}
LABELS = np.array(["apple", BACKGROUND, "pear"])


def write(path: Path, pixels: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".jpg", pixels[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes())


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train on single fruits on white, and draw scenes of two or three."""
    folder = tmp_path_factory.mktemp("regions")
    for number, kind in enumerate(KINDS):
        for i in range(12):
            write(folder / "single" / kind / f"{i}.jpg", draw_fruit(kind, random_state=100 * number + i))
    features = embed(str(folder / "single"), folder / "features", labels="parent", precision="float32")
    assert features.labels is not None
    classifier = Classifier(regularization=0.01).fit(features.to_numpy(), features.labels)
    TrainedModel(classifier, features.plan.backbone, embed_settings=ASKED).save(folder / "model")
    for i in range(8):
        rng = np.random.default_rng(i)
        kinds = rng.choice(KINDS, 2 + i % 2, replace=False).tolist()
        write(folder / "scenes" / f"{i} {'+'.join(kinds)} süß.jpg", draw_scene(kinds, random_state=rng).pixels)
    (folder / "scenes" / "broken.jpg").write_bytes(b"no picture")
    return folder


def told(found: fp.Predictions, kind: str | None = None) -> dict[str, set[str]]:
    """Give the labels of each picture."""
    labels: dict[str, set[str]] = {}
    for row in found.to_table().to_pylist():
        labels.setdefault(row["uri"], set())
        if row["label"] != predictions.UNKNOWN and kind in (None, row["kind"]):
            labels[row["uri"]].add(row["label"])
    return labels


# -- boxes ---------------------------------------------------------------------------------------------------


def test_cells_of_a_stretched_picture_cover_all_of_it() -> None:
    boxes = cell_boxes(600, 301, (3, 2), PreprocessSpec(96, 64))
    assert [len(row) for row in boxes] == [2, 2, 2]
    assert boxes[0] == [(0, 0, 300, 100), (300, 0, 600, 100)]
    assert boxes[2][1] == (300, 201, 600, 301)


def test_cells_of_a_cropped_picture_cover_the_middle_that_was_kept() -> None:
    steps = PreprocessSpec(100, 100, resize="crop", shortest_edge=200, interpolation="bilinear")
    boxes = cell_boxes(800, 400, (2, 2), steps)  # made 400 x 200, of which 100 x 100 are kept: 200 x 200 of these
    assert boxes[0][0] == (300, 100, 400, 200)
    assert boxes[1][1] == (400, 200, 500, 300)


def test_neighbouring_cells_of_a_label_are_one_box() -> None:
    shares = np.full((3, 3, 3), 0.1)
    shares[0, 0, 0], shares[0, 1, 0], shares[1, 1, 0] = 0.6, 0.9, 0.7  # an angle of apples
    shares[2, 2, 0] = 0.8  # touches it by a corner only
    shares[1, 0, 2], shares[2, 0, 2], shares[0, 2, 1] = 0.8, 0.4, 1.0  # a pear, one too weak, background
    boxes = cell_boxes(30, 30, (3, 3), PreprocessSpec(96, 96))
    found = cells_of(shares, LABELS, 0.5, boxes)
    assert sorted(found) == [
        Region("apple", 0.8, 20, 20, 30, 30, "cell"),
        Region("apple", 0.9, 0, 0, 20, 20, "cell"),
        Region("pear", 0.8, 0, 10, 10, 20, "cell"),
    ]
    assert cells_of(shares, LABELS, 0.95, boxes) == []


@pytest.mark.parametrize(("width", "height"), [(384, 384), (640, 480), (100, 1000), (7, 5), (1, 1)])
def test_tiles_overlap_and_cover_the_picture(width: int, height: int) -> None:
    boxes = tile_boxes(width, height)
    for side in {right - left for left, _, right, _ in boxes}:
        seen = np.zeros((height, width), int)
        for left, top, right, bottom in boxes:
            assert 0 <= left < right <= width
            assert 0 <= top < bottom <= height
            assert right - left == bottom - top
            if right - left == side:
                seen[top:bottom, left:right] += 1
        assert seen.min() >= 1
        if min(width, height) > 100:
            assert seen[height // 2, width // 2] >= 3


@pytest.mark.parametrize(("width", "height"), [(16_000, 16), (10, 65_000), (3, 4)])
def test_narrow_pictures_have_some_thousand_tiles_at_most(width: int, height: int) -> None:
    boxes = tile_boxes(width, height)
    assert len(boxes) == len(set(boxes)) < 4_000
    seen = np.zeros((height, width), bool)
    for left, top, right, bottom in boxes:
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        seen[top:bottom, left:right] = True
    assert seen.all()


def test_of_overlapping_boxes_of_a_label_the_strongest_stays() -> None:
    boxes = [
        Region("apple", 0.8, 0, 0, 10, 10, "tile"),
        Region("apple", 0.9, 2, 0, 12, 10, "tile"),
        Region("pear", 0.7, 2, 0, 12, 10, "tile"),
        Region("apple", 0.75, 9, 0, 19, 10, "tile"),
    ]
    assert strongest(boxes) == [boxes[1], boxes[3], boxes[2]]


def test_boxes_are_drawn_where_they_are() -> None:
    pixels = np.full((200, 300, 3), 255, np.uint8)
    drawn = np.asarray(Image.open(io.BytesIO(annotate(pixels, [((50, 60, 150, 160), "Kiwi 0.90")]))))
    assert drawn.shape == pixels.shape
    changed = (np.abs(drawn.astype(int) - 255) > 60).any(axis=2)
    assert changed[100, 50]
    assert changed[159, 100]
    assert changed[70, 60]
    assert not changed[:55].any()
    assert not changed[:, 170:].any()
    assert annotate(pixels, [])[:2] == b"\xff\xd8"


def test_a_picture_too_long_for_a_jpeg_is_made_smaller() -> None:
    drawn = annotate(np.zeros((70_000, 8, 3), np.uint8), [((0, 0, 4, 4), "Kiwi 0.90")])
    assert Image.open(io.BytesIO(drawn)).size == (7, 65_500)


# -- pictures ------------------------------------------------------------------------------------------------


def test_cells_are_what_the_classifier_says_of_the_grid(work: Path, tmp_path: Path) -> None:
    found = fp.predict(
        work / "model", str(work / "scenes"), tmp_path / "out", regions=True, threshold=0.4, max_failures=1
    )
    model, features = open_model(work / "model"), fp.open_features(tmp_path / "out")
    assert features.plan.backbone.pooling == "flatten"
    shares = model.predict_proba(features.to_numpy().reshape(-1, 1280)).reshape(8, 9, -1)
    for uri, one in zip(features.uris, shares, strict=True):
        assert told(found)[uri] == {str(model.labels[row.argmax()]) for row in one if row.max() >= 0.4}
    table = found.to_table()
    assert table.column_names == ["uri", "label", "probability", "left", "top", "right", "bottom", "kind"]
    assert set(table["kind"].to_pylist()) <= {"cell", "picture"}
    assert (found.summary["pictures"], found.failures.num_rows) == (8, 1)
    fp.predict(work / "model", tmp_path / "out", tmp_path / "of-set", regions=True, threshold=0.4)
    again = fp.predict(work / "model", tmp_path / "out", tmp_path / "of-set", regions=True, threshold=0.4)
    assert again.to_table().equals(table)


def test_tiles_find_most_of_the_fruits_where_they_lie(work: Path, tmp_path: Path) -> None:
    found = fp.predict(work / "model", str(work / "scenes"), tmp_path / "out", tiles=True, max_failures=1)
    labels = told(found, "tile")
    truth = {uri: set(Path(uri).name.split(" ")[1].split("+")) for uri in labels}
    right = sum(len(labels[uri] & truth[uri]) for uri in truth)
    assert right >= 0.6 * sum(map(len, truth.values()))
    assert right >= 0.6 * sum(map(len, labels.values()))
    for row in found.to_table().to_pylist():
        assert 0 <= row["left"] < row["right"] <= 384
        assert 0 <= row["top"] < row["bottom"] <= 384
    features = fp.open_features(tmp_path / "out")
    assert features.plan.backbone.pooling == "avg"
    of_set = fp.predict(work / "model", features, tmp_path / "of-set", tiles=True, format="csv")
    assert of_set.to_table().equals(found.to_table())


def test_a_picture_with_nothing_is_unknown_as_a_whole(work: Path, tmp_path: Path) -> None:
    write(tmp_path / "in" / "white.jpg", np.full((60, 90, 3), 255, np.uint8))
    for asked in (["regions"], ["tiles"], ["regions", "tiles"]):
        options: dict[str, Any] = {"threshold": 0.9999, **dict.fromkeys(asked, True)}
        found = fp.predict(work / "model", str(tmp_path / "in"), tmp_path / "-".join(asked), **options)
        (row,) = found.to_table().to_pylist()
        assert 0 < row.pop("probability") < 0.9999
        del row["uri"]
        whole = {"left": 0, "top": 0, "right": 90, "bottom": 60}
        assert row == {"label": "unknown", **whole, "kind": "picture"}
        assert found.counts == {"unknown": 1}


def test_background_is_never_told(work: Path, tmp_path: Path) -> None:
    model = open_model(work / "model")
    model.classifier.classes_ = np.array([BACKGROUND, "Kiwi", "Orange", "Plum"])
    unsaved = replace(model, location="", sha256="")
    found = fp.predict(unsaved, str(work / "scenes"), tmp_path / "out", tiles=True, regions=True, max_failures=1)
    assert BACKGROUND not in found.counts
    assert {"cell", "tile"} >= {row["kind"] for row in found.to_table().to_pylist()} - {"picture"}
    assert "Banana" not in found.counts


def test_annotated_copies_lie_beside(work: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"tiles": True, "annotate": True, "max_failures": 1}
    found = fp.predict(work / "model", str(work / "scenes"), tmp_path / "out", **options)
    names = names_below(tmp_path / "out" / "annotated")
    assert len(names) == found.summary["pictures"] == 8
    assert all("süß" in name and name.startswith("00000000-0000") for name in names)
    with Image.open(tmp_path / "out" / "annotated" / names[0]) as copy:
        assert copy.size == (384, 384)
    (tmp_path / "out" / "predictions" / "part-00000000.json").unlink()  # so that it is made again
    (tmp_path / "out" / "annotated" / "00000000-00099-old.jpg").write_bytes(b"of an earlier attempt")
    fp.predict(work / "model", str(work / "scenes"), tmp_path / "out", **options)
    assert names_below(tmp_path / "out" / "annotated") == names


def test_copies_of_pictures_with_the_longest_names_are_written(work: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    scene = next((work / "scenes").glob("0 *")).read_bytes()
    for name in ("草" * 80, "x" * 250):
        (tmp_path / "in" / f"{name}.jpg").write_bytes(scene)
    fp.predict(work / "model", str(tmp_path / "in"), tmp_path / "out", regions=True, annotate=True)
    names = names_below(tmp_path / "out" / "annotated")
    assert len(names) == 2
    assert any("草" * 40 in name for name in names)


def test_pictures_that_are_away_are_counted_and_told_when_they_are_back(work: Path, tmp_path: Path) -> None:
    pictures = shutil.copytree(work / "scenes", tmp_path / "in")
    features = embed(str(pictures), tmp_path / "set", precision="float32", max_failures=1, images_per_part=4)
    away = next(pictures.glob("5 *"))
    away.rename(tmp_path / "away.jpg")
    options: dict[str, Any] = {"tiles": True, "annotate": True, "threshold": 0.5}
    found = fp.predict(work / "model", features, tmp_path / "out", **options)
    assert (found.summary["pictures"], found.summary["unread"]) == (8, 1)
    (row,) = [row for row in found.to_table().to_pylist() if row["uri"] == str(away)]
    assert (row["label"], row["probability"], row["kind"]) == ("unknown", 0, "unread")
    assert len(names_below(tmp_path / "out" / "annotated")) == 7
    shutil.copy2(tmp_path / "away.jpg", away)
    found = fp.predict(work / "model", features, tmp_path / "out", **options)
    assert found.summary["unread"] == 0
    assert {row["kind"] for row in found.to_table().to_pylist()} == {"tile"}
    assert len(names_below(tmp_path / "out" / "annotated")) == 8


def test_a_second_attempt_takes_no_copy_away(work: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"regions": True, "annotate": True, "max_failures": 1}
    found = fp.predict(work / "model", str(work / "scenes"), tmp_path / "out", **options)
    names = names_below(tmp_path / "out" / "annotated")

    class Broken(FolderStorage):  # at the third copy
        def write(self, name: str, data: Any) -> None:
            if name.endswith(Path(names[2]).name):
                raise StorageError("the disk is full")
            super().write(name, data)

    asked = PredictionSettings(regions=True, annotate=True)
    sha256 = found.summary["model"]["sha256"]
    task = RegionPart(Broken(str(tmp_path / "out")), sha256, asked, frozenset([0]))
    with pytest.raises(StorageError):
        task(found.features.plan, 0)
    assert names_below(tmp_path / "out" / "annotated") == names


def test_few_pictures_keep_several_workers_busy(work: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for i in range(3):
        for path in (work / "scenes").glob("[0-3] *"):
            shutil.copy(path, tmp_path / "in" / f"{i} {path.name}")
    found = fp.predict(work / "model", str(tmp_path / "in"), tmp_path / "out", tiles=True)
    assert (found.summary["pictures"], found.summary["parts"]) == (12, 2)


# -- what cannot be ------------------------------------------------------------------------------------------


def test_what_has_no_regions_is_refused(work: Path, tmp_path: Path) -> None:
    def refused(error: type[Exception], words: str, model: Any, sources: Any, **options: Any) -> None:
        with pytest.raises(error, match=words) as caught:
            fp.predict(model, sources, tmp_path / "out", **options)
        assert len(str(caught.value).splitlines()) == 1
        assert not (tmp_path / "out").exists()

    model, scenes = work / "model", str(work / "scenes")
    inside = embed(str(work / "single" / "Kiwi"), tmp_path / "kiwis", precision="float32")
    with pytest.raises(DestinationError, match="take the annotated copies for pictures"):
        fp.predict(model, inside, work / "single" / "Kiwi" / "told", tiles=True, annotate=True)
    assert not (work / "single" / "Kiwi" / "told").exists()
    refused(SettingError, "one label each. Leave out 'top_k'", model, scenes, regions=True, top_k=2)
    refused(SettingError, "boxes to draw.*Give --tiles", model, scenes, annotate=True)
    refused(PlanMismatchError, "are no grid", model, work / "features", regions=True)
    known = open_model(model)
    highest = replace(known, backbone=replace(known.backbone, pooling="max"), location="", sha256="")
    refused(AnalysisError, "averaged features.*knows those of 'max'", highest, scenes, tiles=True)
    other = replace(known, backbone=replace(known.backbone, weights_sha256="1" * 64), location="", sha256="")
    refused(PlanMismatchError, "weights_sha256: '1111", other, work / "features", tiles=True)
