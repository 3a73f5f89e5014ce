"""Reports show results with intervals, explain why two accuracies differ, and say what was not measured."""

from __future__ import annotations

import base64
from pathlib import Path

import numpy as np
import pytest

from featurepress.analysis.evaluation import Measured
from featurepress.reports.report import TILES, evaluation_page, map_rows, reduction_report
from tests.browser import DESKTOP, PHONE, opened
from tests.features.feature_sets import made as made_set
from tests.features.feature_sets import numbers
from tests.reports.documents import BAD, QUOTES, Album, Outline, jpeg, made, outline, reduced, scored


def test_both_accuracies_have_intervals() -> None:
    evaluation = made()
    text = outline(evaluation).text
    for measured in (evaluation.leak_aware, evaluation.naive):
        assert measured.scores is not None
        low, high = (100 * end for end in measured.scores.interval)
        assert f"{100 * measured.scores.accuracy:.1f} %" in text
        assert f"interval: {low:.1f} to {high:.1f} %; {measured.n_test} test images" in text
        assert f"{measured.scores.macro_f1:.3f}" in text
        assert f"{measured.scores.calibration_error:.3f}" in text


def test_the_page_explains_the_difference_of_the_accuracies() -> None:
    evaluation = made()
    naive, aware = evaluation.naive.scores, evaluation.leak_aware.scores
    assert naive is not None
    assert aware is not None
    text = outline(evaluation).text
    assert "40 of 340 test images have a near-duplicate in training." in text
    assert "at least 0.930. This threshold is set by near_duplicate_threshold." in text
    assert f"is {100 * (naive.accuracy - aware.accuracy):.1f} points lower." in text
    same = scored("abc", sure=3.0)
    text = outline(made(naive=Measured(900, 300, scores=same), leak_aware=Measured(900, 300, scores=same))).text
    assert "No test image has a near-duplicate in training." in text
    assert "less than 0.1 points" in text
    text = outline(
        made(naive=Measured(901, 300, scores=scored("abc")), leak_aware=Measured(900, 301, scores=same))
    ).text
    assert "keeps near-duplicates on the same side" in text
    assert "points higher." in text


def test_an_accuracy_that_cannot_be_measured_has_a_reason() -> None:
    reason = "12 test images are left; 30 are needed"
    text = outline(made(leak_aware=Measured(900, 12, 288, ("cherry",), reason))).text
    assert f"not measurable {reason}." in text
    assert "upper limits" in text
    assert "Classes without test images, which" not in text  # the naive test, which is shown, has all classes
    text = outline(made(leak_aware=Measured(900, 300, 40, ("fig", "date"), scores=scored("abc")))).text
    assert "which are not measured: fig, date." in text
    nothing = Measured(0, 0, 0, (), "5 test images are left; 30 are needed")
    page = outline(made(naive=nothing, leak_aware=nothing))
    assert page.text.count("not measurable") == 2
    assert page.all("img") == []


def test_the_model_and_the_conditions_are_named() -> None:
    text = outline(made()).text
    for words in (
        "fruits",
        "logistic",
        "1,280",
        "4d219424ba268d72",
        "features: features/; n samples: 900",
        "drawn",
    ):
        assert words in text
    assert "A sample of 1,240 images was measured." in text
    assert "colour histogram (not measured: the images cannot be read)" in text
    assert "35.0 to 45.0 %" in text
    many = made([f"class {i:02}" for i in range(60)])
    assert "class 11 and 48 more" in outline(many).text


def test_the_classes_with_the_lowest_f1_come_first() -> None:
    page = evaluation_page(made(), Album())
    _, _, table = page.partition('id="classes"')
    scores = made().leak_aware.scores
    assert scores is not None
    worst = sorted(scores.classes, key=lambda result: result.f1)
    positions = [table.index(f">{result.label}</th>") for result in worst]
    assert positions == sorted(positions)


def test_the_most_frequent_confusions_are_named() -> None:
    scores = made().leak_aware.scores
    assert scores is not None
    wrong = np.array(scores.confusion) * (1 - np.eye(3, dtype=int))
    i, j = np.unravel_index(wrong.argmax(), wrong.shape)
    page = outline(made())
    true, predicted = scores.labels[i], scores.labels[j]
    assert any(f"'{true}' is predicted as '{predicted}'" in str(image["alt"]) for image in page.all("img"))
    assert f"of {wrong.sum()} mistakes" in page.text
    assert f"images of the class {true} {predicted} {wrong.max()} " in page.text


def test_mistakes_are_shown_with_their_images_or_as_not_available() -> None:
    album = Album()
    page = outline(made(), album)
    assert album.requests == [[f"s3://fruit/{i}.jpg" for i in range(TILES)]]
    tiles = [image for image in page.all("img") if str(image["src"]).startswith("data:image/jpeg")]
    assert len(tiles) == TILES - 2
    assert {base64.b64decode(str(tile["src"]).partition(",")[2]) for tile in tiles} == {jpeg()}
    assert tiles[0]["alt"] == "An image of 'apple', predicted as 'banana'"
    assert page.text.count("image not available") == 2
    assert "s3://fruit/7.jpg" in page.text
    assert "predicted: banana true: apple confidence: 99.0 % s3://fruit/0.jpg" in page.text


def test_without_mistakes_no_thumbnail_is_requested() -> None:
    album = Album()
    perfect = scored("abc", sure=50.0)
    page = outline(made(leak_aware=Measured(900, 300, 40, scores=perfect), mistakes=()), album)
    assert album.requests == []
    assert "made no mistakes" in page.text
    assert "Most frequent confusions" not in page.text


def test_a_long_table_of_classes_is_cut() -> None:
    labels = [f"class {i:03}" for i in range(300)]
    many = Measured(900, 3_000, scores=scored(labels, 3_000))
    page = outline(made(labels, leak_aware=many, mistakes=(), learning_curve=()))
    assert "Showing 200 of 300 classes." in page.text
    assert len(page.all("tr")) < 250


def test_a_reduction_shows_how_many_components_explain_which_share() -> None:
    page = Outline(reduced())
    assert "explain 97.0 % of the variance" in page.text
    assert "80 % 2 90 % 3 95 % 4 99 % more than 5" in page.text
    assert [str(image["alt"]).split()[0] for image in page.all("img")] == ["Explained", "Map"]
    assert "first two components explain 85.0 %" in page.text
    assert "location apple images 200" in page.text
    assert BAD in Outline(reduced(BAD)).text


def test_the_report_of_a_reduction_includes_its_plots() -> None:
    Z = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    html, plots = reduction_report([0.5, 0.3, 0.1], Z, None, {})
    page = Outline(html)
    found = [base64.b64decode(str(image["src"]).partition(",")[2]) for image in page.all("img")]
    assert found == [plots["variance"], plots["map"]]
    assert "without labels" in str(page.all("img")[1]["alt"])


def test_a_map_shows_evenly_spread_rows_with_their_labels(tmp_path: Path) -> None:
    X = numbers(23, 5)
    labels: list[str | None] = [None if i == 4 else f"label {i}" for i in range(23)]
    features = made_set(tmp_path / "labelled", X, label=labels)
    Z, y = map_rows(features)
    assert np.array_equal(Z, X[:, :2])
    assert y is not None
    assert y.tolist() == [label or "" for label in labels]
    Z, y = map_rows(features, limit=7)
    rows = [0, 3, 6, 9, 13, 16, 19]
    assert np.array_equal(Z, X[rows, :2])
    assert y is not None
    assert y.tolist() == [labels[i] for i in rows]
    Z, y = map_rows(made_set(tmp_path / "unlabelled", X[:, :1]))
    assert (Z.shape, y) == ((23, 1), None)


@pytest.mark.parametrize("size", [PHONE, DESKTOP])
def test_a_browser_shows_sixty_classes(tmp_path: Path, size: tuple[int, int]) -> None:
    labels = [f"{BAD} {QUOTES} {i}" if i % 7 == 0 else f"Apple Red Delicious {i}" for i in range(60)]
    check(tmp_path, evaluation_page(made(labels), Album()), size)


@pytest.mark.parametrize("size", [PHONE, DESKTOP])
def test_a_browser_shows_a_reduction(tmp_path: Path, size: tuple[int, int]) -> None:
    check(tmp_path, reduced(BAD), size)


def check(tmp_path: Path, page: str, size: tuple[int, int]) -> None:
    path = tmp_path / "page.html"
    path.write_text(page, encoding="utf-8")
    with opened(path.as_uri(), size=size) as found:
        assert (found.overflow_px, found.broken_images, found.complaints) == (0, [], [])
        assert found.requests == [found.page.url]
