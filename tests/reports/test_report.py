"""Reports say what was measured, why two figures differ, what cannot be told, and show anyone's text as it is."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from featurepress.analysis.evaluation import Baseline, Evaluation, LearningPoint, Measured, Mistake
from featurepress.analysis.scores import Scores, score
from featurepress.reports.report import MOST_TILES, evaluation_page, map_rows, reduction_page, reduction_plots
from tests.browser import DESKTOP, PHONE, opened
from tests.features.feature_sets import made as made_set
from tests.features.feature_sets import numbers
from tests.reports.test_page import BAD, QUOTES, Outline


def jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (96, 64), "#a03020").save(buffer, "JPEG")
    return buffer.getvalue()


class Album:
    """Gives a small picture of every uri but those of some endings, and notes what it was asked for."""

    def __init__(self, without: str = "7.jpg") -> None:
        self.without, self.asked = without, list[list[str]]()

    def __call__(self, uris: Sequence[str]) -> Mapping[str, bytes]:
        self.asked.append(list(uris))
        return {uri: jpeg() for uri in uris if not uri.endswith(self.without)}


def scored(labels: Sequence[str], n: int = 300, sure: float = 2.0, seed: int = 0) -> Scores:
    draw, classes = np.random.default_rng(seed), np.unique(list(labels))
    y = draw.choice(classes, n)
    powers = np.exp(draw.standard_normal((n, len(classes))) + sure * (y[:, None] == classes))
    return score(y, powers / powers.sum(axis=1, keepdims=True), classes)


def made(labels: Sequence[str] = ("apple", "banana", "cherry"), **changes: Any) -> Evaluation:
    """Make an evaluation with something of everything, in which near-duplicates flatter."""
    names = sorted(labels)
    mistakes = tuple(
        Mistake(f"s3://fruit/{i}.jpg", names[i % len(names)], names[(i + 1) % len(names)], 0.99 - i / 100)
        for i in range(30)
    )
    whole = Evaluation(
        model={
            "name": "fruits",
            "kind": "logistic",
            "n_features": 1280,
            "backbone": "mobilenet_v2",
            "fingerprint": "4d219424ba268d72",
            "labels": names,
            "trained_on": {"features": "features/", "n_samples": 900},
        },
        features="later-features",
        split="drawn",
        near_duplicate_rule="what 99 of 100 pictures do not reach with any picture of another label",
        near_duplicate_threshold=0.93,
        naive=Measured(900, 340, scores=scored(labels, 340, 4.0)),
        leak_aware=Measured(900, 300, 40, scores=scored(labels)),
        mistakes=mistakes,
        baselines=(
            Baseline("always the most frequent label", 0.4, (0.35, 0.45)),
            Baseline("colour histogram", reason="the pictures cannot be read any more"),
        ),
        learning_curve=(LearningPoint(100, 0.5, (0.4, 0.6)), LearningPoint(900, 0.7, (0.65, 0.75))),
        notes=("A sample of 1,240 pictures was measured.",),
    )
    return replace(whole, **changes)


def outline(evaluation: Evaluation, album: Album | None = None) -> Outline:
    return Outline(evaluation_page(evaluation, album or Album()))


def test_both_accuracies_stand_side_by_side_with_their_intervals() -> None:
    evaluation = made()
    text = outline(evaluation).text
    for measured in (evaluation.leak_aware, evaluation.naive):
        assert measured.scores is not None
        low, high = (f"{100 * end:.1f} %" for end in measured.scores.interval)
        assert f"{100 * measured.scores.accuracy:.1f} %between {low} and {high} with 95 % confidence" in text
        assert f"{measured.scores.macro_f1:.3f}" in text
        assert f"{measured.scores.calibration_error:.3f}" in text
    assert "40 of 340 test images have one in training; the leak-aware test leaves them out." in text
    assert "from a cosine of 0.930 on: what 99 of 100 pictures do not reach" in text
    naive, aware = evaluation.naive.scores, evaluation.leak_aware.scores
    assert naive is not None
    assert aware is not None
    assert f"the accuracy is {100 * (naive.accuracy - aware.accuracy):.1f} points lower" in text


def test_why_they_differ_is_said_for_every_kind_of_split() -> None:
    same = scored("abc", sure=3.0)
    equal = made(naive=Measured(900, 300, scores=same), leak_aware=Measured(900, 300, scores=same))
    assert (
        "No test picture has one in training. That changes the accuracy by less than a tenth" in outline(equal).text
    )
    drawn = made(naive=Measured(901, 300, scores=scored("abc")), leak_aware=Measured(900, 301, scores=same))
    text = outline(drawn).text
    assert "The leak-aware split keeps them on one side together. Without them the accuracy is" in text
    assert "points higher" in text


def test_what_cannot_be_measured_says_why() -> None:
    reason = "12 test pictures are left, 288 with a twin in training were dropped; 30 are needed"
    text = outline(made(leak_aware=Measured(900, 12, 288, ("cherry",), reason))).text
    assert f"not measurable{reason}." in text
    assert "What follows is the naive measurement: take it for an upper limit." in text
    assert "Not evaluable" not in text  # with the naive test, which is shown, all classes are
    text = outline(made(leak_aware=Measured(900, 300, 40, ("fig", "date"), scores=scored("abc")))).text
    assert "Not evaluable, since no test picture is left of them: fig, date." in text
    nothing = Measured(0, 0, 0, (), "5 test pictures are left; 30 are needed")
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
    assert "A sample of 1,240 pictures was measured." in text
    assert "colour histogram (not measured: the pictures cannot be read any more)" in text
    assert "35.0 to 45.0 %" in text
    many = made([f"class {i:02}" for i in range(60)])
    assert "class 11 and 48 more" in outline(many).text


def test_classes_stand_with_the_worst_first() -> None:
    page = evaluation_page(made(), Album())
    _, _, table = page.partition("the worst first")
    scores = made().leak_aware.scores
    assert scores is not None
    worst = sorted(scores.classes, key=lambda one: one.f1)
    places = [table.index(f">{one.label}</th>") for one in worst]
    assert places == sorted(places)


def test_the_most_frequent_mistakes_are_named() -> None:
    scores = made().leak_aware.scores
    assert scores is not None
    wrong = np.array(scores.confusion) * (1 - np.eye(3, dtype=int))
    i, j = np.unravel_index(wrong.argmax(), wrong.shape)
    page = outline(made())
    right, told = scores.labels[i], scores.labels[j]
    assert any(f"most often '{right}' is told as '{told}'" in str(said["alt"]) for said in page.all("img"))
    assert f"of {wrong.sum()} mistakes righttoldpicturesshare of the class {right}{told}{wrong.max()}" in page.text


def test_mistakes_are_shown_with_their_pictures_or_say_that_there_is_none() -> None:
    album = Album()
    page = outline(made(), album)
    assert album.asked == [[f"s3://fruit/{i}.jpg" for i in range(MOST_TILES)]]
    tiles = [said for said in page.all("img") if str(said["src"]).startswith("data:image/jpeg")]
    assert len(tiles) == MOST_TILES - 2
    assert {base64.b64decode(str(said["src"]).partition(",")[2]) for said in tiles} == {jpeg()}
    assert tiles[0]["alt"] == "A picture of 'apple' that was told as 'banana'"
    assert page.text.count("picture not available") == 2
    assert "s3://fruit/7.jpg" in page.text
    assert "told: bananais: apple99.0 % sures3://fruit/0.jpg" in page.text


def test_without_mistakes_nothing_is_asked_for() -> None:
    album = Album()
    perfect = scored("abc", sure=50.0)
    page = outline(made(leak_aware=Measured(900, 300, 40, scores=perfect), mistakes=()), album)
    assert album.asked == []
    assert "There is none." in page.text
    assert "What is mixed up most" not in page.text


@pytest.mark.parametrize("bad", [BAD, QUOTES])
def test_anyones_labels_and_names_are_shown_as_they_are(bad: str) -> None:
    labels = (bad, "_a", "$b^")
    changes = {
        "model": {"name": bad, "labels": list(labels), bad: bad},
        "features": bad,
        "notes": (bad,),
        "mistakes": (Mistake(bad, bad, "_a", 0.9),),
        "baselines": (Baseline(bad, reason=bad),),
    }
    plain, page = outline(made()), outline(made(labels, **changes))
    assert {name for name, _ in page.tags} == {name for name, _ in plain.tags}
    assert "".join(page.texts).count(bad) > 10
    assert any(bad in str(said["alt"]) for said in page.all("img"))


def test_a_long_list_of_classes_is_cut() -> None:
    labels = [f"class {i:03}" for i in range(300)]
    many = Measured(900, 3_000, scores=scored(labels, 3_000))
    page = outline(made(labels, leak_aware=many, mistakes=(), learning_curve=()))
    assert "are found: 200 of 300" in page.text
    assert len(page.all("tr")) < 250


# -- the reduction ---------------------------------------------------------------------------------------------


def reduced(bad: str = "apple", n: int = 200) -> str:
    Z = np.random.default_rng(0).normal(size=(n, 5)).astype(np.float32)
    labels = np.array([bad, "b"] * (n // 2))
    return reduction_page([0.6, 0.25, 0.08, 0.03, 0.01], Z, labels, facts={"where": bad, "rows": "200"})


def test_the_reduction_says_how_many_components_keep_what() -> None:
    page = Outline(reduced())
    assert "5 components keep 97.0 % of the variance" in page.text
    assert "80 %2 90 %3 95 %4 99 %more than 5" in page.text
    assert [str(said["alt"]).split()[0] for said in page.all("img")] == ["Variance", "Map"]
    assert "The first two components explain 85.0 %" in page.text
    assert "whereapple rows200" in page.text


def test_pictures_that_are_drawn_already_are_taken() -> None:
    Z = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    pictures = reduction_plots([0.5, 0.3, 0.1], Z, None)
    page = Outline(reduction_page([0.5, 0.3, 0.1], Z, None, facts={}, pictures=pictures))
    found = [base64.b64decode(str(said["src"]).partition(",")[2]) for said in page.all("img")]
    assert found == [pictures["variance"], pictures["map"]]
    assert Outline(reduction_page([0.5, 0.3, 0.1], Z, None, facts={})).tags == page.tags
    assert "without labels" in str(page.all("img")[1]["alt"])


def test_the_reduction_shows_anyones_text_as_it_is() -> None:
    page = Outline(reduced(BAD))
    assert [name for name, _ in page.tags] == [name for name, _ in Outline(reduced()).tags]
    assert BAD in page.text


def test_a_map_shows_rows_from_everywhere_with_their_labels(tmp_path: Path) -> None:
    X = numbers(23, 5)
    labels: list[str | None] = [None if i == 4 else f"label {i}" for i in range(23)]
    features = made_set(tmp_path / "labelled", X, label=labels)
    Z, y = map_rows(features)
    assert np.array_equal(Z, X[:, :2])
    assert y is not None
    assert y.tolist() == [label or "" for label in labels]
    Z, y = map_rows(features, most=7)
    rows = [0, 3, 6, 9, 13, 16, 19]
    assert np.array_equal(Z, X[rows, :2])
    assert y is not None
    assert y.tolist() == [labels[i] for i in rows]
    Z, y = map_rows(made_set(tmp_path / "unlabelled", X[:, :1]))
    assert (Z.shape, y) == ((23, 1), None)


# -- in a browser ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [PHONE, DESKTOP])
@pytest.mark.parametrize("n_classes", [3, 60])
def test_a_browser_shows_an_evaluation(tmp_path: Path, n_classes: int, size: tuple[int, int]) -> None:
    labels = [f"{BAD} {QUOTES} {i}" if i % 7 == 0 else f"Apple Red Delicious {i}" for i in range(n_classes)]
    check(tmp_path, evaluation_page(made(labels), Album()), size)


@pytest.mark.parametrize("size", [PHONE, DESKTOP])
def test_a_browser_shows_a_reduction(tmp_path: Path, size: tuple[int, int]) -> None:
    check(tmp_path, reduced(BAD), size)


def check(tmp_path: Path, page: str, size: tuple[int, int]) -> None:
    path = tmp_path / "report 'of' \"fruit\".html"
    path.write_text(page, encoding="utf-8")
    with opened(path.as_uri(), size=size) as found:
        assert (found.overflow_px, found.broken_pictures, found.complaints) == (0, [], [])
        assert found.asked_for == [found.page.url]
