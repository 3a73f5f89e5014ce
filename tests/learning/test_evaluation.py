"""Evaluation: the figures are those that a few lines by hand give, and what cannot be measured is said."""

from __future__ import annotations

import json
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
APART = 0.99  # pictures of an orchard are drawn each by itself, yet are more alike than photographs


@pytest.fixture(scope="module")
def orchard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Draw an orchard, embed it, reduce it, and train on the reduced set."""
    folder = tmp_path_factory.mktemp("orchard")
    draw_orchard(folder / "in", images_per_kind=20, scenes=0, broken=False)
    embed(str(folder / "in"), folder / "features", labels="{split}/{label}/{name}", precision="float32")
    fp.reduce(folder / "features", folder / "reduced", n_components=40)
    fp.train(folder / "reduced", folder / "model", near_duplicate_threshold=APART)
    return folder


def strangers(out: Path, n: int = 90) -> FeatureSet:
    """Write other rows about the same centres."""
    return cloud_set(out, n, random_state=5, spread=2.0)


def test_other_pictures_all_test(tmp_path: Path) -> None:
    model = fp.train(cloud_set(tmp_path / "features", spread=2.0), tmp_path / "model", **EASY)
    test = strangers(tmp_path / "test")
    found = fp.evaluate(tmp_path / "model", test.location, near_duplicate_threshold=1.0)
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
    model = fp.train(features, None, **EASY)
    X, y = cloud(90, random_state=5, spread=2.0)
    known, labels = features.to_numpy(), features.labels
    assert labels is not None
    X[:20] = known[labels == "apple"][:20]  # twenty of the thirty apples
    uris = [f"t{i}.jpg" for i in range(90)]
    test = made(tmp_path / "test", X, uris, label=y.tolist(), distinct=True)
    found = fp.evaluate(model, test, near_duplicate_threshold=0.9999)
    assert (found.leak_aware.n_near_duplicates, found.leak_aware.n_test, found.naive.n_test) == (20, 70, 90)
    assert found.leak_aware.scores is not None
    X[:30] = known[labels == "apple"][:30]
    test = made(tmp_path / "all", X, uris, label=y.tolist(), distinct=True)
    found = fp.evaluate(model, test, near_duplicate_threshold=0.9999)
    assert found.leak_aware.scores is None
    assert found.leak_aware.reason == "all test images of 'apple' have a near-duplicate in training"
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
    model = fp.train(cloud_set(tmp_path / "features"), None, **EASY)
    test = cloud_set(tmp_path / "test", 40, label=["durian", *(["apple"] * 12), *(["fig"] * 27)])
    found = fp.evaluate(model, test)
    assert found.notes == ("the model knows nothing of 'durian', 'fig': each such picture counts as a mistake",)
    assert found.naive.scores is not None
    assert found.naive.scores.accuracy == pytest.approx(12 / 40)


def test_more_than_memory_is_drawn(tmp_path: Path) -> None:
    model = fp.train(cloud_set(tmp_path / "features"), None, **EASY)
    found = fp.evaluate(model, strangers(tmp_path / "test", 300), in_memory_bytes=4 * 15 * 200)
    assert (found.naive.n_train, found.naive.n_test) == (99, 99)  # of three labels, a third each
    assert [note.partition(" pictures")[0] for note in found.notes] == ["99 of the 300", "99 of the 240"]


def test_a_drawn_split_is_made_again(tmp_path: Path) -> None:
    features = cloud_set(tmp_path / "features", spread=2.0)
    model = fp.train(features, None, **EASY)
    found = fp.evaluate(model, features)
    for side in ("naive", "leak_aware"):
        scores, known = getattr(found, side).scores, model.metrics[side]["scores"]
        assert (scores.accuracy, scores.n_samples) == (known["accuracy"], known["n_samples"])


def test_it_is_made_again_whatever_the_seed(tmp_path: Path) -> None:
    features = cloud_set(tmp_path / "features", spread=3.0)
    model = fp.train(features, tmp_path / "model", random_state=7, near_duplicate_threshold=0.99)
    found = fp.evaluate(fp.open_model(tmp_path / "model"), features)
    assert found.leak_aware.scores is not None
    assert found.leak_aware.scores.accuracy == model.metrics["leak_aware"]["scores"]["accuracy"]
    assert found.naive.n_test == model.metrics["naive"]["n_test"]


def test_what_was_trained_on_does_not_test_under_another_word(tmp_path: Path) -> None:
    """A column with three sides: what was left for choosing trained the model, and tells nothing of it."""
    column = (["train", "train", "val", "test"] * 60)[:240]
    features = cloud_set(tmp_path / "features", spread=3.0, split=column)
    options: dict[str, Any] = {"kind": "knn", "n_neighbors": 1, "near_duplicate_threshold": 1.0}
    model = fp.train(features, None, **options)
    assert fp.evaluate(model, features).split == "by the column 'split'"
    found = fp.evaluate(model, features, test_value="val")
    assert found.split == "by the column 'split'; a like classifier, fitted to one side"
    assert found.naive.scores is not None
    assert found.naive.scores.accuracy < 1.0  # one neighbour tells what it was trained on without fail
    assert found.naive.n_test == 60


def test_the_set_that_a_training_set_was_reduced_from_is_its_own(orchard: Path) -> None:
    found = fp.evaluate(orchard / "model", orchard / "features", near_duplicate_threshold=APART)
    other = fp.evaluate(orchard / "model", orchard / "reduced", near_duplicate_threshold=APART)
    assert found.split == other.split == "by the column 'split'"
    assert (found.naive.n_train, found.naive.n_test) == (other.naive.n_train, other.naive.n_test)


def test_files_that_were_trained_on_are_told(tmp_path: Path) -> None:
    features = cloud_set(tmp_path / "features")
    model = fp.train(features, None, **EASY)
    X, y = cloud(240)
    again = made(tmp_path / "again", X[:90], list(features.uris[:90]), label=y[:90].tolist(), distinct=True)
    found = fp.evaluate(model, again, near_duplicate_threshold=1.0)
    assert found.notes[0].startswith("90 of the 90 test pictures are files that it was trained on")
    assert found.leak_aware.scores is None


def test_a_drawn_part_of_the_training_set_is_no_place_to_look_for_twins(tmp_path: Path) -> None:
    model = fp.train(cloud_set(tmp_path / "features", 600), None, **EASY)
    found = fp.evaluate(
        model, strangers(tmp_path / "test"), in_memory_bytes=4 * 15 * 400, near_duplicate_threshold=1.0
    )
    assert found.leak_aware.scores is None
    assert found.leak_aware.reason == (
        "near-duplicates cannot be looked for: 201 of the 600 pictures that it was trained on were drawn"
    )
    assert [point.n_train for point in found.learning_curve][-2:] == [99, 600]


def labels_file(features: FeatureSet, path: Path, **renamed: str) -> Path:
    assert features.labels is not None
    rows = (f'{uri},"{renamed.get(y, y)}"' for uri, y in zip(features.uris, features.labels, strict=True))
    path.write_text("\n".join(["uri,label", *rows, ""]), encoding="utf-8")
    return path


def test_a_file_of_labels_is_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    found = fp.evaluate("../model", strangers(tmp_path / "test"), label_column="label")
    assert found.naive.scores is not None  # by the field, though the model was trained with a file
    assert "cannot be told any more. The 'labels_file' setting" in found.leak_aware.reason
    assert "\n" not in found.leak_aware.reason


def test_another_feature_space_is_refused(orchard: Path, tmp_path: Path) -> None:
    model = fp.train(orchard / "features", tmp_path / "model", near_duplicate_threshold=APART, **EASY)
    with pytest.raises(
        PlanMismatchError, match=r"model' cannot tell the features of '.*reduced'; .*projection: None"
    ):
        fp.evaluate(model, orchard / "reduced", tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


# -- with pictures -------------------------------------------------------------------------------------------


def test_a_report_of_an_orchard(orchard: Path, tmp_path: Path) -> None:
    found = fp.evaluate(
        orchard / "model", orchard / "reduced", tmp_path / "report.html", near_duplicate_threshold=APART
    )
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
    )
    assert {(one.label, one.predicted) for one in found.mistakes} >= {("Durian", "Plum")}
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/jpeg") >= len(found.mistakes) > 3


def test_the_report_in_a_browser(orchard: Path, tmp_path: Path) -> None:
    fp.evaluate(orchard / "model", orchard / "features", tmp_path / "report.html", near_duplicate_threshold=APART)
    for size in (PHONE, DESKTOP):
        with opened((tmp_path / "report.html").as_uri(), size=size) as page:
            assert page.page.evaluate("document.images.length") >= 3
            assert page.broken_images == []
            assert page.overflow_px == 0
            assert page.complaints == []
            assert page.requests == [(tmp_path / "report.html").as_uri()]


def test_pictures_that_are_gone_leave_a_report_all_the_same(orchard: Path, tmp_path: Path) -> None:
    copy = tmp_path / "orchard"
    shutil.copytree(orchard / "in", copy)
    embed(str(copy), tmp_path / "features", labels="{split}/{label}/{name}", precision="float32")
    fp.train(tmp_path / "features", tmp_path / "model", near_duplicate_threshold=APART)
    shutil.rmtree(copy)
    found = fp.evaluate(
        tmp_path / "model", tmp_path / "features", tmp_path / "report.html", near_duplicate_threshold=APART
    )
    assert found.baselines[1].reason == "the images cannot be read"
    assert (tmp_path / "report.html").is_file()


def test_a_report_that_cannot_be_written_is_refused_first(orchard: Path, tmp_path: Path) -> None:
    for name, kind in (("report.htm", SettingError), ("nowhere/report.html", DestinationError)):
        with pytest.raises(kind, match="report"):
            fp.evaluate(tmp_path / "no model", orchard / "reduced", tmp_path / name)
    (tmp_path / "report.json").write_text("mine")
    with pytest.raises(DestinationError, match=r"report.json' already exists"):
        fp.evaluate(tmp_path / "no model", orchard / "reduced", tmp_path / "report.html")


# -- the commands --------------------------------------------------------------------------------------------


def test_the_commands(orchard: Path, tmp_path: Path) -> None:
    threshold = ("--near-duplicate-threshold", str(APART))
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
