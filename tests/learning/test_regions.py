"""Regions: several labels per image, with boxes around the fruits."""

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
from featurepress.analysis.boxes import BACKGROUND
from featurepress.demo.orchard import draw_fruit, draw_scene
from featurepress.errors import AnalysisError, DestinationError, PlanMismatchError, SettingError, StorageError
from featurepress.images.annotate import annotate
from featurepress.learning import predictions
from featurepress.learning.model import TrainedModel, open_model
from featurepress.learning.regions import RegionTask, cell_boxes
from featurepress.settings import PredictionSettings
from featurepress.specs import PreprocessSpec
from featurepress.storage import FolderStorage
from tests.running import embed, names_below

KINDS = ("Banana", "Kiwi", "Orange", "Plum")
EMBED_SETTINGS: dict[str, Any] = {"model": "embedded", "precision": "float32", "pooling": "avg"}


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
    TrainedModel(classifier, features.plan.backbone, embed_settings=EMBED_SETTINGS).save(folder / "model")
    for i in range(8):
        rng = np.random.default_rng(i)
        kinds = rng.choice(KINDS, 2 + i % 2, replace=False).tolist()
        write(folder / "scenes" / f"{i} {'+'.join(kinds)} süß.jpg", draw_scene(kinds, random_state=rng).pixels)
    (folder / "scenes" / "broken.jpg").write_bytes(b"not an image")
    return folder


def labels_by_image(result: fp.Predictions, kind: str | None = None) -> dict[str, set[str]]:
    """Return the labels of each image."""
    labels: dict[str, set[str]] = {}
    for row in result.to_table().to_pylist():
        labels.setdefault(row["uri"], set())
        if row["label"] != predictions.UNKNOWN and kind in (None, row["kind"]):
            labels[row["uri"]].add(row["label"])
    return labels


# -- boxes ---------------------------------------------------------------------------------------------------


def test_cells_of_a_stretched_image_cover_all_of_it() -> None:
    boxes = cell_boxes(600, 301, (3, 2), PreprocessSpec(96, 64))
    assert [len(row) for row in boxes] == [2, 2, 2]
    assert boxes[0] == [(0, 0, 300, 100), (300, 0, 600, 100)]
    assert boxes[2][1] == (300, 201, 600, 301)


def test_cells_of_a_cropped_image_cover_the_part_that_was_kept() -> None:
    steps = PreprocessSpec(100, 100, resize="crop", shortest_edge=200, interpolation="bilinear")
    boxes = cell_boxes(800, 400, (2, 2), steps)  # made 400 x 200, of which 100 x 100 are kept: 200 x 200 of these
    assert boxes[0][0] == (300, 100, 400, 200)
    assert boxes[1][1] == (400, 200, 500, 300)


def test_boxes_are_drawn_at_their_position() -> None:
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


def test_an_image_too_long_for_a_jpeg_is_scaled_down() -> None:
    drawn = annotate(np.zeros((70_000, 8, 3), np.uint8), [((0, 0, 4, 4), "Kiwi 0.90")])
    assert Image.open(io.BytesIO(drawn)).size == (7, 65_500)


# -- images ------------------------------------------------------------------------------------------------


def test_cells_have_the_labels_of_the_classifier(work: Path, tmp_path: Path) -> None:
    result = fp.predict(
        work / "model", str(work / "scenes"), tmp_path / "out", regions=True, threshold=0.4, max_failures=1
    )
    model, features = open_model(work / "model"), fp.open_features(tmp_path / "out")
    assert features.plan.backbone.pooling == "flatten"
    shares = model.predict_proba(features.to_numpy().reshape(-1, 1280)).reshape(8, 9, -1)
    for uri, one in zip(features.uris, shares, strict=True):
        assert labels_by_image(result)[uri] == {str(model.labels[row.argmax()]) for row in one if row.max() >= 0.4}
    table = result.to_table()
    assert table.column_names == ["uri", "label", "probability", "left", "top", "right", "bottom", "kind"]
    assert set(table["kind"].to_pylist()) <= {"cell", "image"}
    assert (result.summary["images"], result.failures.num_rows) == (8, 1)
    fp.predict(work / "model", tmp_path / "out", tmp_path / "of-set", regions=True, threshold=0.4)
    again = fp.predict(work / "model", tmp_path / "out", tmp_path / "of-set", regions=True, threshold=0.4)
    assert again.to_table().equals(table)


def test_tiles_find_most_of_the_fruits(work: Path, tmp_path: Path) -> None:
    result = fp.predict(work / "model", str(work / "scenes"), tmp_path / "out", tiles=True, max_failures=1)
    labels = labels_by_image(result, "tile")
    truth = {uri: set(Path(uri).name.split(" ")[1].split("+")) for uri in labels}
    right = sum(len(labels[uri] & truth[uri]) for uri in truth)
    assert right >= 0.6 * sum(map(len, truth.values()))
    assert right >= 0.6 * sum(map(len, labels.values()))
    for row in result.to_table().to_pylist():
        assert 0 <= row["left"] < row["right"] <= 384
        assert 0 <= row["top"] < row["bottom"] <= 384
    features = fp.open_features(tmp_path / "out")
    assert features.plan.backbone.pooling == "avg"
    of_set = fp.predict(work / "model", features, tmp_path / "of-set", tiles=True, file_format="csv")
    assert of_set.to_table().equals(result.to_table())


def test_an_image_without_regions_is_unknown_as_a_whole(work: Path, tmp_path: Path) -> None:
    write(tmp_path / "in" / "white.jpg", np.full((60, 90, 3), 255, np.uint8))
    for names in (["regions"], ["tiles"], ["regions", "tiles"]):
        options: dict[str, Any] = {"threshold": 0.9999, **dict.fromkeys(names, True)}
        result = fp.predict(work / "model", str(tmp_path / "in"), tmp_path / "-".join(names), **options)
        (row,) = result.to_table().to_pylist()
        assert 0 < row.pop("probability") < 0.9999
        del row["uri"]
        whole = {"left": 0, "top": 0, "right": 90, "bottom": 60}
        assert row == {"label": "unknown", **whole, "kind": "image"}
        assert result.counts == {"unknown": 1}


def test_background_is_never_predicted(work: Path, tmp_path: Path) -> None:
    features = fp.open_features(work / "features")
    assert features.labels is not None
    y = np.where(features.labels == "Banana", BACKGROUND, features.labels)
    classifier = Classifier(regularization=0.01).fit(features.to_numpy(), y)
    unsaved = TrainedModel(classifier, features.plan.backbone, embed_settings=EMBED_SETTINGS)
    result = fp.predict(unsaved, str(work / "scenes"), tmp_path / "out", tiles=True, regions=True, max_failures=1)
    assert BACKGROUND not in result.counts
    assert {"cell", "tile"} >= {row["kind"] for row in result.to_table().to_pylist()} - {"image"}
    assert "Banana" not in result.counts


def test_annotated_copies_are_written(work: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"tiles": True, "annotate": True, "max_failures": 1}
    result = fp.predict(work / "model", str(work / "scenes"), tmp_path / "out", **options)
    names = names_below(tmp_path / "out" / "annotated")
    assert len(names) == result.summary["images"] == 8
    assert all("süß" in name and name.startswith("00000000-0000") for name in names)
    with Image.open(tmp_path / "out" / "annotated" / names[0]) as copy:
        assert copy.size == (384, 384)
    (tmp_path / "out" / "predictions" / "part-00000000.json").unlink()  # so it is predicted again
    (tmp_path / "out" / "annotated" / "00000000-00099-old.jpg").write_bytes(b"of an earlier attempt")
    fp.predict(work / "model", str(work / "scenes"), tmp_path / "out", **options)
    assert names_below(tmp_path / "out" / "annotated") == names


def test_copies_of_images_with_long_names_are_written(work: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    scene = next((work / "scenes").glob("0 *")).read_bytes()
    for name in ("草" * 80, "x" * 250):
        (tmp_path / "in" / f"{name}.jpg").write_bytes(scene)
    fp.predict(work / "model", str(tmp_path / "in"), tmp_path / "out", regions=True, annotate=True)
    names = names_below(tmp_path / "out" / "annotated")
    assert len(names) == 2
    assert any("草" * 40 in name for name in names)


def test_missing_images_are_counted_and_predicted_when_they_are_back(work: Path, tmp_path: Path) -> None:
    images = shutil.copytree(work / "scenes", tmp_path / "in")
    features = embed(str(images), tmp_path / "set", precision="float32", max_failures=1, images_per_part=4)
    away = next(images.glob("5 *"))
    away.rename(tmp_path / "away.jpg")
    options: dict[str, Any] = {"tiles": True, "annotate": True, "threshold": 0.5}
    result = fp.predict(work / "model", features, tmp_path / "out", **options)
    assert (result.summary["images"], result.summary["unread"]) == (8, 1)
    (row,) = [row for row in result.to_table().to_pylist() if row["uri"] == str(away)]
    assert (row["label"], row["probability"], row["kind"]) == ("unknown", 0, "unread")
    assert len(names_below(tmp_path / "out" / "annotated")) == 7
    shutil.copy2(tmp_path / "away.jpg", away)
    result = fp.predict(work / "model", features, tmp_path / "out", **options)
    assert result.summary["unread"] == 0
    assert {row["kind"] for row in result.to_table().to_pylist()} == {"tile"}
    assert len(names_below(tmp_path / "out" / "annotated")) == 8


def test_a_second_attempt_deletes_no_copy(work: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"regions": True, "annotate": True, "max_failures": 1}
    result = fp.predict(work / "model", str(work / "scenes"), tmp_path / "out", **options)
    names = names_below(tmp_path / "out" / "annotated")

    class Broken(FolderStorage):  # at the third copy
        def write(self, name: str, data: Any) -> None:
            if name.endswith(Path(names[2]).name):
                raise StorageError("the disk is full")
            super().write(name, data)

    settings = PredictionSettings(regions=True, annotate=True)
    sha256 = result.summary["model"]["sha256"]
    task = RegionTask(Broken(str(tmp_path / "out")), sha256, settings, frozenset([0]))
    with pytest.raises(StorageError):
        task(result.features.plan, 0)
    assert names_below(tmp_path / "out" / "annotated") == names


def test_few_images_keep_several_workers_busy(work: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for i in range(3):
        for path in (work / "scenes").glob("[0-3] *"):
            shutil.copy(path, tmp_path / "in" / f"{i} {path.name}")
    result = fp.predict(work / "model", str(tmp_path / "in"), tmp_path / "out", tiles=True)
    assert (result.summary["images"], result.summary["parts"]) == (12, 2)


# -- refusals ------------------------------------------------------------------------------------------


def test_models_and_features_without_regions_are_refused(work: Path, tmp_path: Path) -> None:
    def refused(error: type[Exception], pattern: str, model: Any, sources: Any, **options: Any) -> None:
        with pytest.raises(error, match=pattern) as caught:
            fp.predict(model, sources, tmp_path / "out", **options)
        assert len(str(caught.value).splitlines()) == 1
        assert not (tmp_path / "out").exists()

    model, scenes = work / "model", str(work / "scenes")
    inside = embed(str(work / "single" / "Kiwi"), tmp_path / "kiwis", precision="float32")
    with pytest.raises(DestinationError, match="annotated copies"):
        fp.predict(model, inside, work / "single" / "Kiwi" / "inside", tiles=True, annotate=True)
    assert not (work / "single" / "Kiwi" / "inside").exists()
    refused(SettingError, "'top_k'", model, scenes, regions=True, top_k=2)
    refused(SettingError, "annotate.*--tiles", model, scenes, annotate=True)
    refused(PlanMismatchError, "not a grid", model, work / "features", regions=True)
    known = open_model(model)
    highest = replace(known, backbone=replace(known.backbone, pooling="max"), location="", sha256="")
    refused(AnalysisError, "averaged features.*'max'", highest, scenes, tiles=True)
    other = replace(known, backbone=replace(known.backbone, weights_sha256="1" * 64), location="", sha256="")
    refused(PlanMismatchError, "weights_sha256: '1111", other, work / "features", tiles=True)
