"""The orchard: fruits that differ, files that are counted, broken files that are broken."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from featurepress.demo.orchard import KINDS, Orchard, draw_fruit, draw_images, draw_orchard, draw_scene
from featurepress.errors import DestinationError, SettingError, StorageError


@pytest.fixture(scope="module")
def orchard(tmp_path_factory: pytest.TempPathFactory) -> Orchard:
    return draw_orchard(tmp_path_factory.mktemp("demo") / "orchard", images_per_kind=5, scenes=3)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def opens(path: Path) -> tuple[bool, bool]:
    """Whether OpenCV and Pillow decode the file whole."""
    data = np.frombuffer(path.read_bytes(), np.uint8)
    try:
        by_opencv = data.size > 0 and cv2.imdecode(data, cv2.IMREAD_COLOR) is not None
    except cv2.error:
        by_opencv = False
    try:
        with Image.open(path) as image:
            image.load()
    except (OSError, Image.DecompressionBombError):
        return by_opencv, False
    return by_opencv, True


def test_empty_tables_are_labelled_background(tmp_path: Path) -> None:
    drawn = draw_orchard(tmp_path / "orchard", images_per_kind=1, scenes=0, broken=False, backgrounds=5)
    assert drawn.images == len(KINDS) + 5
    paths = sorted((tmp_path / "orchard" / "Training" / "background").iterdir())
    assert [path.name for path in paths] == [f"{i:04d}.jpg" for i in range(5)]
    for path in paths:
        pixels = cv2.imread(str(path))
        assert pixels is not None
        assert 60 <= len(pixels) < 200
        assert pixels.std(axis=(0, 1)).max() < 20  # nothing lies on it


def test_there_are_at_least_ten_kinds_with_distinct_names() -> None:
    assert len(set(KINDS)) == len(KINDS) >= 10


@pytest.mark.parametrize("kind", KINDS)
def test_fruit_is_rgb_bytes_on_white_and_fills_the_image(kind: str) -> None:
    for seed in range(3):
        image = draw_fruit(kind, random_state=seed)
        assert image.shape == (100, 100, 3)
        assert image.dtype == np.uint8
        assert image[[0, 0, -1, -1], [0, -1, 0, -1]].min() >= 225
        rows, columns = np.nonzero(image.min(axis=2) < 150)
        assert 70 <= max(np.ptp(rows), np.ptp(columns)) < 99


def test_the_seed_determines_the_image() -> None:
    first = draw_fruit("Pear", random_state=3)
    np.testing.assert_array_equal(first, draw_fruit("Pear", random_state=3))
    np.testing.assert_array_equal(first, draw_fruit("Pear", random_state=np.random.default_rng(3)))
    assert np.abs(first.astype(int) - draw_fruit("Pear", random_state=4)).mean() > 3


@pytest.mark.parametrize("image_size_px", [16, 33, 224])
def test_fruit_of_any_size_looks_like_the_same_fruit(image_size_px: int) -> None:
    image = draw_fruit("Orange", random_state=1, image_size_px=image_size_px)
    assert image.shape == (image_size_px, image_size_px, 3)
    small = cv2.resize(image, (8, 8), interpolation=cv2.INTER_AREA)
    reference = cv2.resize(draw_fruit("Orange", random_state=1), (8, 8), interpolation=cv2.INTER_AREA)
    assert np.abs(small.astype(int) - reference).mean() < 8


def test_colours_are_in_rgb_order() -> None:
    red, _, blue = draw_fruit("Strawberry", random_state=0)[45:65, 45:65].reshape(-1, 3).mean(axis=0)
    assert red > blue + 60


def thumbnails(seeds: range) -> NDArray[np.float32]:
    """Return images of 6 x 6 pixels: array (kinds, seeds, 108)."""
    small = [
        [cv2.resize(draw_fruit(k, random_state=s), (6, 6), interpolation=cv2.INTER_AREA) for s in seeds]
        for k in KINDS
    ]
    return np.array(small, np.float32).reshape(len(KINDS), len(seeds), -1)


def test_the_nearest_centroid_of_tiny_images_separates_the_kinds() -> None:
    centroids = thumbnails(range(12)).mean(axis=1)
    unseen = thumbnails(range(100, 106))
    distances = np.linalg.norm(unseen[:, :, None, :] - centroids, axis=3)
    hits = distances.argmin(axis=2) == np.arange(len(KINDS))[:, None]
    assert hits.mean() > 0.8  # chance is 1 / 14
    assert hits.mean(axis=1).min() > 0.3


def test_scene_holds_each_fruit_where_its_box_says() -> None:
    kinds = ["Strawberry", "Banana", "Strawberry"]
    scene = draw_scene(kinds, random_state=2)
    assert scene.pixels.shape == (384, 384, 3)
    assert scene.pixels.dtype == np.uint8
    assert [kind for kind, _ in scene.fruits] == kinds
    hsv = cv2.cvtColor(scene.pixels, cv2.COLOR_RGB2HSV)
    vivid = (hsv[:, :, 1] > 110).astype(np.uint8)
    for _, (left, top, right, bottom) in scene.fruits:
        assert 0 <= left < right <= 384
        assert 0 <= top < bottom <= 384
        assert vivid[top:bottom, left:right].mean() > 0.25
        vivid[top:bottom, left:right] = 0
    assert vivid.mean() < 0.01


def test_fruits_of_a_scene_hide_one_another_only_a_little() -> None:
    for seed in range(6):
        boxes = np.array([box for _, box in draw_scene(KINDS[:5], random_state=seed).fruits])
        for i, one in enumerate(boxes):
            for other in boxes[:i]:
                common = np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2])
                area = min((one[2:] - one[:2]).prod(), (other[2:] - other[:2]).prod())
                assert np.maximum(common, 0).prod() <= 0.3 * area


def test_the_seed_determines_the_scene() -> None:
    first, again = draw_scene(KINDS[:3], random_state=5), draw_scene(KINDS[:3], random_state=5)
    np.testing.assert_array_equal(first.pixels, again.pixels)
    assert first.fruits == again.fruits


def test_counts_on_disk_are_those_reported(orchard: Orchard) -> None:
    good = [p for p in orchard.folder.glob("T*/*/*") if all(opens(p))]
    broken = [p for p in orchard.folder.glob("T*/*/*") if not any(opens(p))]
    scenes = sorted(orchard.folder.glob("test-multiple_fruits/*.jpg"))
    assert (len(good), len(scenes), len(broken)) == (orchard.images, orchard.scenes, orchard.broken)
    assert orchard.images == 5 * len(KINDS)
    assert orchard.broken == 4
    for kind in KINDS:
        assert len([p for p in good if p.parent.name == kind and p.parts[-3] == "Test"]) == 1


def test_broken_files_fail_in_opencv_and_pillow_each_in_its_own_way(orchard: Orchard) -> None:
    broken = {p.name: p for p in orchard.folder.glob("T*/*/*") if not all(opens(p))}
    assert set(broken) == {"empty.jpg", "truncated.jpg", "shopping list.jpg", "enormous.png"}
    assert broken["empty.jpg"].stat().st_size == 0
    assert broken["truncated.jpg"].read_bytes()[:2] == b"\xff\xd8"
    assert broken["enormous.png"].stat().st_size < 200
    assert int.from_bytes(broken["enormous.png"].read_bytes()[16:20]) == 50_000
    assert not any(any(opens(path)) for path in broken.values())


def test_one_valid_image_has_spaces_and_letters_beyond_ascii(orchard: Orchard) -> None:
    (odd,) = (p for p in orchard.folder.rglob("*.jpg") if not p.name.isascii())
    assert " " in odd.name
    assert all(opens(odd))


def test_scene_files_are_named_after_their_fruits_and_boxes_are_beside_them(orchard: Orchard) -> None:
    truth = json.loads((orchard.folder / "test-multiple_fruits" / "boxes.json").read_text("utf-8"))
    scenes = sorted(orchard.folder.glob("test-multiple_fruits/*.jpg"))
    assert sorted(truth) == [p.name for p in scenes]
    for path in scenes:
        assert all(opens(path))
        for fruit in truth[path.name]:
            assert fruit["kind"].lower().replace(" ", "_") in path.name
            assert len(fruit["box"]) == 4


def test_the_seed_determines_each_file_whatever_their_number(tmp_path: Path) -> None:
    few = draw_orchard(tmp_path / "few", images_per_kind=1, scenes=1, random_state=7)
    again = draw_orchard(tmp_path / "again", images_per_kind=1, scenes=1, random_state=7)
    more = draw_orchard(tmp_path / "more", images_per_kind=2, scenes=1, random_state=7, broken=False)
    assert contents(few.folder) == contents(again.folder)
    assert contents(more.folder)["Training/Kiwi/0000.jpg"] == contents(few.folder)["Training/Kiwi/0000.jpg"]
    assert more.broken == 0
    assert all(name.isascii() for name in contents(more.folder))


def test_an_orchard_is_replaced_whole_and_other_files_in_it_stay(tmp_path: Path) -> None:
    draw_orchard(tmp_path, images_per_kind=2, scenes=2)
    (tmp_path / "notes.txt").write_text("mine")
    draw_orchard(tmp_path, images_per_kind=1, scenes=0, broken=False)
    images = [name for name in contents(tmp_path) if name.endswith((".jpg", ".png"))]
    assert len(images) == len(KINDS)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_marker_that_points_outside_its_folder_removes_nothing_there(tmp_path: Path) -> None:
    precious = tmp_path / "precious.txt"
    precious.write_text("mine")
    folder = draw_orchard(tmp_path / "orchard", images_per_kind=1, scenes=0).folder
    with (folder / ".featurepress-orchard").open("a") as marker:
        marker.write(f"../precious.txt\n{precious}\n")
    draw_orchard(folder, images_per_kind=1, scenes=0)
    assert precious.read_text() == "mine"


def test_a_foreign_folder_is_refused_untouched(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"mine")
    with pytest.raises(DestinationError, match=r"must be new, empty or drawn.*holiday\.jpg.*Choose another"):
        draw_orchard(tmp_path, images_per_kind=1, scenes=0)
    assert contents(tmp_path) == {"holiday.jpg": b"mine"}


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(DestinationError, match="Cannot draw into"):
        draw_orchard(tmp_path / "file")


def test_the_next_call_recovers_from_a_failed_write(tmp_path: Path) -> None:
    draw_orchard(tmp_path, images_per_kind=1, scenes=0)
    hindrance = tmp_path / "Training" / "Pear" / "0001.jpg"
    hindrance.mkdir()
    with pytest.raises(StorageError, match=r"0001\.jpg"):
        draw_orchard(tmp_path, images_per_kind=2, scenes=0)
    hindrance.rmdir()
    draw_orchard(tmp_path, images_per_kind=1, scenes=0, broken=False)
    assert len([name for name in contents(tmp_path) if name.endswith(".jpg")]) == len(KINDS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"images_per_kind": 0}, "The 'images_per_kind' setting must be an integer of at least 1. Got 0."),
        ({"scenes": -1}, "The 'scenes' setting must be an integer of at least 0. Got -1."),
        ({"random_state": -1}, "The 'random_state' setting must be an integer of at least 0. Got -1."),
        (
            {"images_per_kind": 2.5},
            "The 'images_per_kind' setting must be an integer of at least 1. Got 2.5.",
        ),
    ],
)
def test_settings_out_of_range_are_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError) as caught:
        draw_orchard(tmp_path / "orchard", **settings)
    assert str(caught.value) == message
    assert not (tmp_path / "orchard").exists()


def test_unknown_kind_names_near_ones() -> None:
    with pytest.raises(SettingError, match=r"'strawbery'\. Choose Strawberry"):
        draw_fruit("strawbery", random_state=0)
    with pytest.raises(SettingError, match="image_size_px"):
        draw_fruit("Pear", random_state=0, image_size_px=8)


def test_images_are_valid_distinct_and_spread_over_the_kinds(tmp_path: Path) -> None:
    paths = draw_images(tmp_path, 600, image_size_px=32)
    assert len(paths) == len(set(paths)) == 600
    assert {p.parent.name for p in paths} == set(KINDS)
    assert len({hashlib.sha256(p.read_bytes()).digest() for p in paths}) == 600
    for path in paths[::40]:
        assert all(opens(path))
        image = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
        assert image is not None
        assert image.shape == (32, 32, 3)


def test_few_images_or_none_are_fine_and_repeatable(tmp_path: Path) -> None:
    assert draw_images(tmp_path / "none", 0) == []
    first = [p.read_bytes() for p in draw_images(tmp_path / "a", 3, random_state=1)]
    assert first == [p.read_bytes() for p in draw_images(tmp_path / "b", 3, random_state=1)]
