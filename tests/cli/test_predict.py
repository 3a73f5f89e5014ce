"""featurepress predict: what it prints and how it refuses; the options of docs/how-to/predict.md."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from featurepress.analysis import Classifier
from featurepress.learning.model import TrainedModel
from tests.running import draw, embed, run_here


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("predict")
    draw(folder / "photos", 42)
    draw(folder / "scenes", 6, image_size_px=96)
    features = embed(str(folder / "photos"), folder / "features", labels="parent", precision="float32")
    assert features.labels is not None
    classifier = Classifier(regularization=1e-3).fit(features.to_numpy(), features.labels)
    asked = {"model": "embedded", "precision": "float32", "pooling": "avg"}
    TrainedModel(classifier, features.plan.backbone, embed_settings=asked).save(folder / "fruit-model")
    shutil.copytree(folder / "fruit-model", folder / "edited")
    with (folder / "edited" / "classifier.npz").open("ab") as file:
        file.write(b" ")
    return folder


def test_it_prints_the_counts_of_labels(work: Path, tmp_path: Path) -> None:
    done = run_here("predict", "fruit-model", "photos", "--out", tmp_path / "out", "--json", cwd=work)
    assert done.returncode == 0, done.stderr
    assert "42 labels of 42 images, 0 failed" in done.stderr
    assert "3 Banana" in done.stderr
    assert "and 4 more labels" in done.stderr
    assert done.stderr.splitlines()[-1] == f"next: featurepress info {tmp_path / 'out'}"
    result = json.loads(done.stdout)
    assert (result["rows"], sum(result["labels"].values()), result["status"]) == (42, 42, "complete")
    assert result["seconds"] > 0
    assert "42 embedded, 0 failed" in run_here("info", tmp_path / "out").stdout


def test_too_many_failures_end_with_three_and_are_written(work: Path, tmp_path: Path) -> None:
    draw(tmp_path / "in", 8, broken=True)
    done = run_here("predict", work / "fruit-model", tmp_path / "in", "--out", tmp_path / "out", "--json")
    assert done.returncode == 3, done.stderr
    assert "3 of 11 images failed" in done.stderr
    assert f"next: featurepress failures {tmp_path / 'out'}" in done.stderr
    assert json.loads(done.stdout)["rows"] == 8
    assert pq.read_table(tmp_path / "out" / "predictions" / "part-00000000.parquet").num_rows == 8
    assert "list.jpg" in run_here("failures", tmp_path / "out").stdout


def test_images_that_could_not_be_read_again_are_counted(work: Path, tmp_path: Path) -> None:
    draw(tmp_path / "in", 3)
    run_here("embed", tmp_path / "in", "--out", tmp_path / "set", "--precision", "float32")
    next((tmp_path / "in").rglob("*.jpg")).unlink()
    done = run_here("predict", work / "fruit-model", tmp_path / "set", "--tiles", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "1 images could not be read again" in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["photos", "photos"], "is not a trained model"),
        (["edited", "photos"], "hash differs"),
        (["fruit-model", "nowhere"], "nowhere"),
        (["fruit-model", "photos", "--top-k", "many"], "must be an integer from 1 to 1000. Got 'many'"),
        (["fruit-model", "photos", "--top-k", "15"], "at most 14"),
        (["fruit-model", "photos", "--threshold", "2"], "must be a number from 0 to 1. Got 2.0"),
        (["fruit-model", "photos", "--file-format", "cvs"], "did you mean 'csv'"),
        (["fruit-model", "features", "--limit", "3"], "Leave out limit"),
        (["fruit-model", "features", "--master", "local[2]"], "--master is for --engine spark only"),
        (["fruit-model", "photos", "--annotate"], "Add --tiles"),
        (["fruit-model", "features", "--regions"], "not a grid"),
        (["fruit-model", "photos", "--model", "embedded"], "No such option: --model"),
    ],
)
def test_a_bad_request_is_one_line_and_two(work: Path, tmp_path: Path, words: list[str], message: str) -> None:
    done = run_here("predict", *words, "--out", tmp_path / "out", cwd=work)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert message in done.stderr
    assert not (tmp_path / "out").exists()
