"""Evaluation: the figures are those that a few lines by hand give, and what cannot be measured is said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import featurepress as fp
from featurepress.demo import draw_orchard
from featurepress.errors import DestinationError, PlanMismatchError, SettingError
from featurepress.featureset import FeatureSet
from tests.analysis.clouds import cloud, cloud_set
from tests.browser import DESKTOP, PHONE, opened
from tests.feature_sets import made
from tests.runs import embed, run_cli

EASY: dict[str, Any] = {"regularization": 0.1}
APART = 0.99  # pictures of an orchard are drawn each by itself, yet are more alike than photographs


@pytest.fixture(scope="module")
def orchard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Draw an orchard, press it, reduce it, and train on the reduced set."""
    folder = tmp_path_factory.mktemp("orchard")
    draw_orchard(folder / "in", images_per_kind=20, scenes=0, broken=False)
    embed(str(folder / "in"), folder / "features", labels="{split}/{label}/{name}", precision="float32")
    fp.reduce(folder / "features", folder / "reduced", n_components=40)
    fp.train(folder / "reduced", folder / "model", twin_threshold=APART)
    return folder


def strangers(out: Path, n: int = 90) -> FeatureSet:
    """Write other rows about the same centres."""
    return cloud_set(out, n, random_state=5, spread=2.0)


def test_other_pictures_all_test(tmp_path: Path) -> None:
    model = fp.train(cloud_set(tmp_path / "features", spread=2.0), tmp_path / "model", **EASY)
    test = strangers(tmp_path / "test")
    found = fp.evaluate(tmp_path / "model", test.location, twin_threshold=1.0)
    X, y = cloud(90, random_state=5, spread=2.0)
    right = model.predict(X) == y
    assert found.naive.scores is not None
    assert found.naive.scores.accuracy == pytest.approx(right.mean())
    assert (found.naive.n_train, found.naive.n_test, found.split) == (
        240,
        90,
        "other pictures than it was trained on",
    )
    assert [(one.uri, one.label) for one in sorted(found.mistakes, key=lambda one: one.uri)] == [
        (f"test-{i:05d}.jpg", y[i]) for i in np.flatnonzero(~right)
    ]
    shares = [one.probability for one in found.mistakes]
    assert shares == sorted(shares, reverse=True)
    assert found.baselines[0].accuracy == pytest.approx(1 / 3)
    assert [point.n_train for point in found.learning_curve][-1] == 240
    assert found.learning_curve[-1].accuracy == pytest.approx(right.mean())


def test_a_twin_in_training_is_dropped(tmp_path: Path) -> None:
    features = cloud_set(tmp_path / "features", spread=2.0)
    model = fp.train(features, **EASY)
    X, y = cloud(90, random_state=5, spread=2.0)
    known, labels = features.to_numpy(), features.labels
    assert labels is not None
    X[:20] = known[labels == "apple"][:20]  # twenty of the thirty apples
    uris = [f"t{i}.jpg" for i in range(90)]
    test = made(tmp_path / "test", X, uris, label=y.tolist(), distinct=True)
    found = fp.evaluate(model, test, twin_threshold=0.9999)
    assert (found.leak_aware.n_twins, found.leak_aware.n_test, found.naive.n_test) == (20, 70, 90)
    assert found.leak_aware.scores is not None
    X[:30] = known[labels == "apple"][:30]
    test = made(tmp_path / "all", X, uris, label=y.tolist(), distinct=True)
    found = fp.evaluate(model, test, twin_threshold=0.9999)
    assert found.leak_aware.scores is None
    assert found.leak_aware.reason == "all test pictures of 'apple' have a twin in training"
    assert found.best is found.naive


def test_without_the_training_set_only_the_naive_figure_is_told(tmp_path: Path) -> None:
    features = cloud_set(tmp_path / "features")
    fp.train(features, tmp_path / "model", **EASY)
    test = strangers(tmp_path / "test")
    shutil.rmtree(tmp_path / "features")
    found = fp.evaluate(tmp_path / "model", test)
    assert found.leak_aware.reason == (
        f"near-duplicates cannot be looked for: the training set '{features.location}' is gone"
    )
    assert found.naive.scores is not None
    assert found.learning_curve == ()
    cloud_set(tmp_path / "features", 120)
    assert fp.evaluate(tmp_path / "model", test).leak_aware.reason.endswith("has changed")


def test_labels_that_the_model_does_not_know_are_told(tmp_path: Path) -> None:
    model = fp.train(cloud_set(tmp_path / "features"), **EASY)
    test = cloud_set(tmp_path / "test", 40, label=["durian", *(["apple"] * 12), *(["fig"] * 27)])
    found = fp.evaluate(model, test)
    assert found.notes == ("the model knows nothing of 'durian', 'fig': each such picture counts as a mistake",)
    assert found.naive.scores is not None
    assert found.naive.scores.accuracy == pytest.approx(12 / 40)


def test_more_than_memory_is_drawn(tmp_path: Path) -> None:
    model = fp.train(cloud_set(tmp_path / "features"), **EASY)
    found = fp.evaluate(model, strangers(tmp_path / "test", 300), in_memory_bytes=4 * 12 * 200)
    assert (found.naive.n_train, found.naive.n_test) == (99, 99)  # of three labels, a third each
    assert [note.partition(" pictures")[0] for note in found.notes] == ["99 of the 300", "99 of the 240"]


def test_a_drawn_split_is_made_again(tmp_path: Path) -> None:
    features = cloud_set(tmp_path / "features", spread=2.0)
    model = fp.train(features, **EASY)
    found = fp.evaluate(model, features)
    for side in ("naive", "leak_aware"):
        scores, known = getattr(found, side).scores, model.metrics[side]["scores"]
        assert (scores.accuracy, scores.n_samples) == (known["accuracy"], known["n_samples"])


def test_another_feature_space_is_refused(orchard: Path, tmp_path: Path) -> None:
    model = fp.train(orchard / "features", tmp_path / "model", twin_threshold=APART, **EASY)
    with pytest.raises(
        PlanMismatchError, match=r"model' cannot tell the features of '.*reduced'; .*projection: None"
    ):
        fp.evaluate(model, orchard / "reduced", tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


# -- with pictures -------------------------------------------------------------------------------------------


def test_a_report_of_an_orchard(orchard: Path, tmp_path: Path) -> None:
    found = fp.evaluate(orchard / "model", orchard / "reduced", tmp_path / "report.html", twin_threshold=APART)
    assert found.split == "by the column 'split'"
    assert found.leak_aware.scores is not None
    assert found.leak_aware.scores.accuracy > 0.9
    names = [one.name.partition(",")[0] for one in found.baselines]
    assert names == ["always the most frequent label", "colour histogram"]
    assert found.baselines[1].accuracy is not None
    assert found.baselines[1].accuracy > 0.5
    told = json.loads((tmp_path / "report.json").read_text())
    assert told == json.loads(json.dumps(found.to_json()))


def test_mistakes_are_shown_with_their_pictures(orchard: Path, tmp_path: Path) -> None:
    """Labels that a file has swapped are mistakes, and confident ones."""
    features = fp.open_features(orchard / "features")
    assert features.labels is not None
    rows = [f"{uri},Durian\n" for uri in features.uris if "Plum" in uri]
    rows += [
        f"{uri},{label}\n" for uri, label in zip(features.uris, features.labels, strict=True) if label != "Plum"
    ]
    (tmp_path / "labels.csv").write_text("uri,label\n" + "".join(rows))
    found = fp.evaluate(
        orchard / "model",
        features,
        tmp_path / "report.html",
        labels_file=str(tmp_path / "labels.csv"),
        split_column="drawn",
    )
    assert {(one.label, one.told) for one in found.mistakes} >= {("Durian", "Plum")}
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/jpeg") >= len(found.mistakes) > 3


def test_the_report_in_a_browser(orchard: Path, tmp_path: Path) -> None:
    fp.evaluate(orchard / "model", orchard / "features", tmp_path / "report.html", twin_threshold=APART)
    for size in (PHONE, DESKTOP):
        with opened((tmp_path / "report.html").as_uri(), size=size) as page:
            assert page.page.evaluate("document.images.length") >= 3
            assert page.broken_pictures == []
            assert page.overflow_px == 0
            assert page.complaints == []
            assert page.asked_for == [(tmp_path / "report.html").as_uri()]


def test_pictures_that_are_gone_leave_a_report_all_the_same(orchard: Path, tmp_path: Path) -> None:
    copy = tmp_path / "orchard"
    shutil.copytree(orchard / "in", copy)
    embed(str(copy), tmp_path / "features", labels="{split}/{label}/{name}", precision="float32")
    fp.train(tmp_path / "features", tmp_path / "model", twin_threshold=APART)
    shutil.rmtree(copy)
    found = fp.evaluate(tmp_path / "model", tmp_path / "features", tmp_path / "report.html", twin_threshold=APART)
    assert found.baselines[1].reason == "the pictures cannot be read any more"
    assert (tmp_path / "report.html").is_file()


def test_a_report_that_cannot_be_written_is_refused_first(orchard: Path, tmp_path: Path) -> None:
    for name, kind in (("report.htm", SettingError), ("nowhere/report.html", DestinationError)):
        with pytest.raises(kind, match="report"):
            fp.evaluate(tmp_path / "no model", orchard / "reduced", tmp_path / name)
    (tmp_path / "report.json").write_text("mine")
    with pytest.raises(DestinationError, match=r"report.json' is there already"):
        fp.evaluate(tmp_path / "no model", orchard / "reduced", tmp_path / "report.html")


# -- the commands --------------------------------------------------------------------------------------------


def test_the_commands(orchard: Path, tmp_path: Path) -> None:
    threshold = ("--twin-threshold", str(APART))
    done = run_cli("train", orchard / "reduced", "--out", tmp_path / "model", "--json", *threshold)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["metrics"]["naive"]["scores"]["accuracy"] > 0.9
    assert told["where"] == str(tmp_path / "model")
    for word in ("leak-aware", "naive", "accuracy", "95 %", "Apple Green", "next: featurepress predict"):
        assert word in done.stderr
    done = run_cli("info", tmp_path / "model")
    assert done.returncode == 0, done.stderr
    for word in ("leak-aware", "Apple Green", "embedded-v1, avg, reduced to 40", "fingerprint", "scikit-learn"):
        assert word in done.stdout
    shown = json.loads(run_cli("info", tmp_path / "model", "--json").stdout)
    assert {name: told[name] for name in shown} == shown
    report = tmp_path / "report.html"
    done = run_cli("evaluate", tmp_path / "model", orchard / "reduced", "--report", report, "--json", *threshold)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["leak_aware"]["n_test"] > 30
    assert "colour histogram" in done.stderr
    assert report.is_file()


def test_the_commands_refuse_in_one_line(orchard: Path, tmp_path: Path) -> None:
    shutil.copytree(orchard / "model", tmp_path / "model")
    with (tmp_path / "model" / "classifier.npz").open("ab") as file:
        file.write(b"x")
    for words in (
        ("evaluate", tmp_path / "model", orchard / "reduced"),
        ("train", orchard / "nothing"),
        ("train", orchard / "reduced", "--out", tmp_path / "other", "--label-column", "kind"),
        ("train", orchard / "reduced", "--out", tmp_path / "model"),
    ):
        done = run_cli(*words)
        assert done.returncode == 2, done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
        assert done.stderr.startswith("featurepress: ")
    assert not (tmp_path / "other").exists()
