from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import featurepress as fp
from featurepress.analysis import PCA, Classifier
from featurepress.errors import AnalysisError, DestinationError, PlanMismatchError
from featurepress.learning.model import TrainedModel, open_model
from featurepress.specs import BackboneSpec, PreprocessSpec
from tests.analysis.clouds import cloud

SPEC = BackboneSpec("fake", "fake", "0" * 64, "grid", (1, 1, 12), "avg", PreprocessSpec(8, 8))


def trained(**more: Any) -> TrainedModel:
    X, y = cloud(60)
    return TrainedModel(Classifier(regularization=1.0).fit(X, y), SPEC, metrics={"naive": {}}, **more)


def reduced() -> TrainedModel:
    X, y = cloud(60)
    pca = PCA(n_components=4).fit(X)
    sha256 = hashlib.sha256(pca.to_bytes()).hexdigest()
    spec = replace(SPEC, projection={"sha256": sha256, "n_components": 4})
    return TrainedModel(Classifier(regularization=1.0).fit(pca.transform(X), y), spec, pca)


@pytest.mark.parametrize("make", [trained, reduced])
def test_a_saved_model_is_read_back(make: Any, tmp_path: Path) -> None:
    written = make().save(tmp_path / "model")
    opened = open_model(tmp_path / "model")
    X = cloud(30, random_state=4)[0]
    assert opened.predict_proba(X).tobytes() == written.predict_proba(X).tobytes()
    assert opened.labels.tolist() == ["apple", "banana", "cherry"]
    assert (opened.predict(X) == cloud(30)[1]).mean() > 0.9
    assert (opened.fingerprint, opened.sha256) == (written.fingerprint, written.sha256)
    assert opened.location == str(tmp_path / "model")
    assert fp.open_model(tmp_path / "model").metrics == written.metrics


def test_files_hold_no_pickled_objects(tmp_path: Path) -> None:
    reduced().save(tmp_path / "model")
    for path in (tmp_path / "model").glob("*.npz"):
        with np.load(path, allow_pickle=False) as arrays:
            assert all(arrays[name].dtype != object for name in arrays.files)


def test_features_of_the_backbone_are_projected(tmp_path: Path) -> None:
    model = reduced()
    X = cloud(30)[0]
    assert model.projection is not None
    small = model.projection.transform(X)
    assert model.predict_proba(X).tobytes() == model.predict_proba(small).tobytes()
    assert model.transform_of(SPEC, "set")(X).tobytes() == small.tobytes()
    assert model.transform_of(model.backbone, "set")(small) is small


def test_another_feature_space_names_both(tmp_path: Path) -> None:
    model = trained().save(tmp_path / "model")
    with pytest.raises(PlanMismatchError) as error:
        model.transform_of(replace(SPEC, pooling="max"), "other/")
    for fact in (f"'{tmp_path}/model'", "'other/'", "pooling: 'avg', not 'max'"):
        assert fact in str(error.value)
    with pytest.raises(PlanMismatchError, match="projection: None, not"):
        model.transform_of(reduced().backbone, "other/")


@pytest.mark.parametrize("name", ["classifier.npz", "projection.npz"])
def test_an_edited_file_is_refused(name: str, tmp_path: Path) -> None:
    reduced().save(tmp_path / "model")
    path = tmp_path / "model" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(AnalysisError, match=rf"{name}'.*hash"):
        open_model(tmp_path / "model")
    path.unlink()
    with pytest.raises(AnalysisError, match=f"no file '{name}'"):
        open_model(tmp_path / "model")


@pytest.mark.parametrize(
    "edit",
    [
        lambda values: values["labels"].reverse(),
        lambda values: values.update(fingerprint="0" * 16),
        lambda values: values["files"].popitem(),
        lambda values: values.pop("sha256"),
    ],
)
def test_an_edited_description_is_refused(edit: Any, tmp_path: Path) -> None:
    reduced().save(tmp_path / "model")
    path = tmp_path / "model" / "model.json"
    values = json.loads(path.read_text())
    edit(values)
    path.write_text(json.dumps(values))
    with pytest.raises(AnalysisError, match=r"model.json'.*hash"):
        open_model(tmp_path / "model")


@pytest.mark.parametrize(("version", "remedy"), [(1, "Train it again"), (3, "Update featurepress")])
def test_another_format_and_a_damaged_model_are_refused(tmp_path: Path, version: int, remedy: str) -> None:
    trained().save(tmp_path / "model")
    path = tmp_path / "model" / "model.json"
    path.write_text(path.read_text().replace('"format": 2', f'"format": {version}'))
    with pytest.raises(AnalysisError, match=rf"format {version}.*reads 2.*{remedy}"):
        open_model(tmp_path / "model")
    path.write_text("{")
    with pytest.raises(AnalysisError, match="hash"):
        open_model(tmp_path / "model")
    with pytest.raises(AnalysisError, match=r"not a trained model.*model.json"):
        open_model(tmp_path / "nothing")


def test_only_an_empty_folder_is_written(tmp_path: Path) -> None:
    trained().save(tmp_path / "model")
    before = (tmp_path / "model" / "model.json").read_bytes()
    with pytest.raises(DestinationError, match="a trained model"):
        reduced().save(tmp_path / "model")
    assert (tmp_path / "model" / "model.json").read_bytes() == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(DestinationError, match=r"'notes.txt'"):
        trained().save(tmp_path / "other")
    with pytest.raises(DestinationError, match="is a file"):
        trained().save(tmp_path / "other" / "notes.txt")
