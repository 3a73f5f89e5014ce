"""Evaluation: the measurements equal those of a few lines of NumPy; what cannot be measured has a reason."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import featurepress as fp
from featurepress.demo.orchard import draw_orchard
from featurepress.errors import DestinationError, PlanMismatchError, SettingError
from featurepress.features.feature_set import FeatureSet
from tests.analysis.clouds import cloud, cloud_set
from tests.browser import DESKTOP, PHONE, opened
from tests.features.feature_sets import made
from tests.running import embed, run_cli

EASY: dict[str, Any] = {"regularization": 0.1}
APART = 0.99  # drawn images are more alike than photographs


@pytest.fixture(scope="module")
def orchard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Draw an orchard, embed it, reduce it, and train on the reduced set."""
    folder = tmp_path_factory.mktemp("orchard")
    draw_orchard(folder / "in", images_per_kind=20, scenes=0, broken=False)
    embed(str(folder / "in"), folder / "features", labels="{split}/{label}/{name}", precision="float32")
    fp.reduce(folder / "features", folder / "reduced", n_components=40)
    fp.train(folder / "reduced", folder / "model", near_duplicate_threshold=APART)
    return folder


def other_rows(out: Path, n: int = 90) -> FeatureSet:
    """Write other rows around the same centres."""
    return cloud_set(out, n, random_state=5, spread=2.0)


def test_all_rows_of_another_set_are_tested(tmp_path: Path) -> None:
    model = fp.train(cloud_set(tmp_path / "features", spread=2.0), tmp_path / "model", **EASY)
    test = other_rows(tmp_path / "test")
    evaluation = fp.evaluate(tmp_path / "model", test.location, near_duplicate_threshold=1.0)
    X, y = cloud(90, random_state=5, spread=2.0)
    right = model.predict(X) == y
    assert evaluation.naive.scores is not None
    assert evaluation.naive.scores.accuracy == pytest.approx(right.mean())
    assert (evaluation.naive.n_train, evaluation.naive.n_test, evaluation.split) == (
        240,
        90,
        "other images than the training images",
    )
    assert [(one.uri, one.label) for one in sorted(evaluation.mistakes, key=lambda one: one.uri)] == [
        (f"test-{i:05d}.jpg", y[i]) for i in np.flatnonzero(~right)
    ]
    shares = [one.probability for one in evaluation.mistakes]
    assert shares == sorted(shares, reverse=True)
    assert evaluation.baselines[0].accuracy == pytest.approx(1 / 3)
    assert [point.n_train for point in evaluation.learning_curve][-1] == 240
    assert evaluation.learning_curve[-1].accuracy == pytest.approx(right.mean())


def test_an_evaluation_in_a_notebook(tmp_path: Path) -> None:
    model = fp.train(cloud_set(tmp_path / "features", spread=2.0), tmp_path / "model", **EASY)
    evaluation = fp.evaluate(model, other_rows(tmp_path / "test"), near_duplicate_threshold=1.0)
    assert evaluation.best.scores is not None
    assert f"{evaluation.best.scores.accuracy:.1%}" in repr(evaluation)
    assert len(repr(evaluation).splitlines()) == 1
    html = evaluation._repr_html_()
    for fact in (str(tmp_path / "test"), evaluation.split, evaluation.mistakes[0].uri):
        assert fact in html


def test_a_near_duplicate_of_a_training_image_is_dropped(tmp_path: Path) -> None:
    features = cloud_set(tmp_path / "features", spread=2.0)
    model = fp.train(features, None, **EASY)
    X, y = cloud(90, random_state=5, spread=2.0)
    known, labels = features.to_numpy(), features.labels
    assert labels is not None
    X[:20] = known[labels == "apple"][:20]  # twenty of the thirty apples
    uris = [f"t{i}.jpg" for i in range(90)]
    test = made(tmp_path / "test", X, uris, label=y.tolist(), distinct=True)
    evaluation = fp.evaluate(model, test, near_duplicate_threshold=0.9999)
    assert (evaluation.leak_aware.n_near_duplicates, evaluation.leak_aware.n_test, evaluation.naive.n_test) == (
        20,
        70,
        90,
    )
    assert evaluation.leak_aware.scores is not None
    X[:30] = known[labels == "apple"][:30]
    test = made(tmp_path / "all", X, uris, label=y.tolist(), distinct=True)
    evaluation = fp.evaluate(model, test, near_duplicate_threshold=0.9999)
    assert evaluation.leak_aware.scores is None
    assert "'apple'" in evaluation.leak_aware.reason
    assert evaluation.best is evaluation.naive


def test_without_the_training_set_only_the_naive_measurement_is_made(tmp_path: Path) -> None:
    features = cloud_set(tmp_path / "features")
    fp.train(features, tmp_path / "model", **EASY)
    test = other_rows(tmp_path / "test")
    shutil.rmtree(tmp_path / "features")
    evaluation = fp.evaluate(tmp_path / "model", test)
    assert f"'{features.location}' is missing" in evaluation.leak_aware.reason
    assert evaluation.naive.scores is not None
    assert evaluation.learning_curve == ()
    cloud_set(tmp_path / "features", 120)
    assert fp.evaluate(tmp_path / "model", test).leak_aware.reason.endswith("has changed")


def test_labels_that_the_model_cannot_predict_are_noted(tmp_path: Path) -> None:
    model = fp.train(cloud_set(tmp_path / "features"), None, **EASY)
    test = cloud_set(tmp_path / "test", 40, label=["durian", *(["apple"] * 12), *(["fig"] * 27)])
    evaluation = fp.evaluate(model, test)
    assert "'durian', 'fig'" in evaluation.notes[0]
    assert evaluation.naive.scores is not None
    assert evaluation.naive.scores.accuracy == pytest.approx(12 / 40)


def test_a_sample_of_a_set_larger_than_memory_is_measured(tmp_path: Path) -> None:
    model = fp.train(cloud_set(tmp_path / "features"), None, **EASY)
    evaluation = fp.evaluate(model, other_rows(tmp_path / "test", 300), in_memory_bytes=4 * 15 * 200)
    assert (evaluation.naive.n_train, evaluation.naive.n_test) == (99, 99)  # of three labels, a third each
    assert [re.findall(r"\d+ of \d+", note) for note in evaluation.notes] == [["99 of 300"], ["99 of 240"]]


def test_a_drawn_split_is_repeated(tmp_path: Path) -> None:
    features = cloud_set(tmp_path / "features", spread=2.0)
    model = fp.train(features, None, **EASY)
    evaluation = fp.evaluate(model, features)
    for side in ("naive", "leak_aware"):
        scores, known = getattr(evaluation, side).scores, model.metrics[side]["scores"]
        assert (scores.accuracy, scores.n_samples) == (known["accuracy"], known["n_samples"])


def test_a_drawn_split_is_repeated_with_any_seed(tmp_path: Path) -> None:
    features = cloud_set(tmp_path / "features", spread=3.0)
    model = fp.train(features, tmp_path / "model", random_state=7, near_duplicate_threshold=0.99)
    evaluation = fp.evaluate(fp.open_model(tmp_path / "model"), features)
    assert evaluation.leak_aware.scores is not None
    assert evaluation.leak_aware.scores.accuracy == model.metrics["leak_aware"]["scores"]["accuracy"]
    assert evaluation.naive.n_test == model.metrics["naive"]["n_test"]


def test_training_images_are_not_tested_with_another_test_value(tmp_path: Path) -> None:
    """A column with three values: the model was trained on the rows of 'val', so they cannot test it."""
    column = (["train", "train", "val", "test"] * 60)[:240]
    features = cloud_set(tmp_path / "features", spread=3.0, split=column)
    options: dict[str, Any] = {"kind": "knn", "n_neighbors": 1, "near_duplicate_threshold": 1.0}
    model = fp.train(features, None, **options)
    assert fp.evaluate(model, features).split == "by the column 'split'"
    evaluation = fp.evaluate(model, features, test_value="val")
    assert evaluation.split == "by the column 'split'; a classifier of the same kind, fitted to one side"
    assert evaluation.naive.scores is not None
    assert evaluation.naive.scores.accuracy < 1.0  # a nearest neighbour is always right on training images
    assert evaluation.naive.n_test == 60


def test_the_source_of_a_reduced_training_set_is_the_training_set(orchard: Path) -> None:
    evaluation = fp.evaluate(orchard / "model", orchard / "features", near_duplicate_threshold=APART)
    other = fp.evaluate(orchard / "model", orchard / "reduced", near_duplicate_threshold=APART)
    assert evaluation.split == other.split == "by the column 'split'"
    assert (evaluation.naive.n_train, evaluation.naive.n_test) == (other.naive.n_train, other.naive.n_test)


def test_training_images_in_the_test_are_noted(tmp_path: Path) -> None:
    features = cloud_set(tmp_path / "features")
    model = fp.train(features, None, **EASY)
    X, y = cloud(240)
    again = made(tmp_path / "again", X[:90], list(features.uris[:90]), label=y[:90].tolist(), distinct=True)
    evaluation = fp.evaluate(model, again, near_duplicate_threshold=1.0)
    assert "90 of the 90 test images" in evaluation.notes[0]
    assert evaluation.leak_aware.scores is None


def test_near_duplicates_are_not_searched_in_a_sample_of_the_training_set(tmp_path: Path) -> None:
    model = fp.train(cloud_set(tmp_path / "features", 600), None, **EASY)
    evaluation = fp.evaluate(
        model, other_rows(tmp_path / "test"), in_memory_bytes=4 * 15 * 400, near_duplicate_threshold=1.0
    )
    assert evaluation.leak_aware.scores is None
    assert "201 of the 600 training images" in evaluation.leak_aware.reason
    assert [point.n_train for point in evaluation.learning_curve][-2:] == [99, 600]


def labels_file(features: FeatureSet, path: Path, **renamed: str) -> Path:
    assert features.labels is not None
    rows = (f'{uri},"{renamed.get(y, y)}"' for uri, y in zip(features.uris, features.labels, strict=True))
    path.write_text("\n".join(["uri,label", *rows, ""]), encoding="utf-8")
    return path


def test_the_labels_file_is_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    features = cloud_set(tmp_path / "features")
    names = {"apple": "Apfel, süß", "cherry": "桜" * 200}
    labels_file(features, tmp_path / "labels.csv", **names)
    monkeypatch.chdir(tmp_path)
    model = fp.train("features", "model", labels_file="labels.csv", **EASY)
    assert set(model.labels) == {"banana", *names.values()}
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert fp.evaluate("../model", "../features").naive.scores is not None
    (tmp_path / "labels.csv").unlink()
    evaluation = fp.evaluate("../model", other_rows(tmp_path / "test"), label_field="label")
    assert evaluation.naive.scores is not None  # by the field, though the model was trained with a file
    assert "'labels_file'" in evaluation.leak_aware.reason
    assert "\n" not in evaluation.leak_aware.reason


def test_another_feature_space_is_refused(orchard: Path, tmp_path: Path) -> None:
    model = fp.train(orchard / "features", tmp_path / "model", near_duplicate_threshold=APART, **EASY)
    with pytest.raises(PlanMismatchError, match=r"model'.*reduced'.*projection: None"):
        fp.evaluate(model, orchard / "reduced", tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


# -- with images -------------------------------------------------------------------------------------------


def test_a_report_of_an_orchard(orchard: Path, tmp_path: Path) -> None:
    evaluation = fp.evaluate(
        orchard / "model", orchard / "reduced", tmp_path / "report.html", near_duplicate_threshold=APART
    )
    assert evaluation.split == "by the column 'split'"
    assert evaluation.leak_aware.scores is not None
    assert evaluation.leak_aware.scores.accuracy > 0.9
    names = [one.name.partition(",")[0] for one in evaluation.baselines]
    assert names == ["always the most frequent label", "colour histogram"]
    assert evaluation.baselines[1].accuracy is not None
    assert evaluation.baselines[1].accuracy > 0.5
    values = json.loads((tmp_path / "report.json").read_text())
    assert values == json.loads(json.dumps(evaluation.to_json()))


def test_mistakes_are_shown_with_their_images(orchard: Path, tmp_path: Path) -> None:
    """Labels swapped in a file become confident mistakes."""
    features = fp.open_features(orchard / "features")
    assert features.labels is not None
    rows = [f"{uri},Durian\n" for uri in features.uris if "Plum" in uri]
    rows += [
        f"{uri},{label}\n" for uri, label in zip(features.uris, features.labels, strict=True) if label != "Plum"
    ]
    (tmp_path / "labels.csv").write_text("uri,label\n" + "".join(rows))
    evaluation = fp.evaluate(
        orchard / "model",
        features,
        tmp_path / "report.html",
        labels_file=str(tmp_path / "labels.csv"),
    )
    assert {(one.label, one.predicted) for one in evaluation.mistakes} >= {("Durian", "Plum")}
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/jpeg") >= len(evaluation.mistakes) > 3


def test_the_report_in_a_browser(orchard: Path, tmp_path: Path) -> None:
    fp.evaluate(orchard / "model", orchard / "features", tmp_path / "report.html", near_duplicate_threshold=APART)
    for size in (PHONE, DESKTOP):
        with opened((tmp_path / "report.html").as_uri(), size=size) as page:
            assert page.page.evaluate("document.images.length") >= 3
            assert page.broken_images == []
            assert page.overflow_px == 0
            assert page.complaints == []
            assert page.requests == [(tmp_path / "report.html").as_uri()]


def test_a_report_is_written_without_the_images(orchard: Path, tmp_path: Path) -> None:
    copy = tmp_path / "orchard"
    shutil.copytree(orchard / "in", copy)
    embed(str(copy), tmp_path / "features", labels="{split}/{label}/{name}", precision="float32")
    fp.train(tmp_path / "features", tmp_path / "model", near_duplicate_threshold=APART)
    shutil.rmtree(copy)
    evaluation = fp.evaluate(
        tmp_path / "model", tmp_path / "features", tmp_path / "report.html", near_duplicate_threshold=APART
    )
    assert "cannot be read" in evaluation.baselines[1].reason
    assert (tmp_path / "report.html").is_file()


def test_a_report_that_cannot_be_written_is_refused_before_any_work(orchard: Path, tmp_path: Path) -> None:
    for name, kind in (("report.htm", SettingError), ("nowhere/report.html", DestinationError)):
        with pytest.raises(kind, match="report"):
            fp.evaluate(tmp_path / "no model", orchard / "reduced", tmp_path / name)
    (tmp_path / "report.json").write_text("mine")
    with pytest.raises(DestinationError, match=r"report\.json"):
        fp.evaluate(tmp_path / "no model", orchard / "reduced", tmp_path / "report.html")


# -- the commands --------------------------------------------------------------------------------------------


def test_the_commands(orchard: Path, tmp_path: Path) -> None:
    threshold = ("--near-duplicate-threshold", str(APART))
    done = run_cli("train", orchard / "reduced", "--out", tmp_path / "model", "--json", *threshold)
    assert done.returncode == 0, done.stderr
    values = json.loads(done.stdout)
    assert values["metrics"]["naive"]["scores"]["accuracy"] > 0.9
    assert values["where"] == str(tmp_path / "model")
    for word in ("leak-aware", "naive", "accuracy", "95 %", "Apple Green", "next: featurepress predict"):
        assert word in done.stderr
    done = run_cli("info", tmp_path / "model")
    assert done.returncode == 0, done.stderr
    for word in ("leak-aware", "Apple Green", "embedded-v1, avg, reduced to 40", "fingerprint", "scikit-learn"):
        assert word in done.stdout
    shown = json.loads(run_cli("info", tmp_path / "model", "--json").stdout)
    assert {name: values[name] for name in shown} == shown
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
        ("train", orchard / "reduced", "--out", tmp_path / "other", "--label-field", "kind"),
        ("train", orchard / "reduced", "--out", tmp_path / "model"),
    ):
        done = run_cli(*words)
        assert done.returncode == 2, done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
        assert done.stderr.startswith("featurepress: ")
    assert not (tmp_path / "other").exists()
