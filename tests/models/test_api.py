"""The functions of `featurepress.models`, as Python users call them."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest

import featurepress as fp
from featurepress.settings import Choices, declared_of
from tests.models import made
from tests.running import draw
from tests.settings.test_signatures import declared_type

FUNCTIONS = ("list", "show", "outputs", "pull", "add", "verify", "bench")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_has_a_full_signature_and_a_docstring(name: str) -> None:
    function = getattr(fp.models, name)
    parameters = inspect.signature(function).parameters.values()
    assert all(p.annotation is not p.empty for p in parameters)
    assert name == "outputs" or inspect.signature(function).parameters["progress"].default is True
    assert inspect.getdoc(function)


def test_only_the_public_functions_are_listed() -> None:
    assert sorted(dir(fp.models)) == sorted(FUNCTIONS)
    with pytest.raises(AttributeError, match="pul"):
        fp.models.pul  # noqa: B018


def test_add_has_every_choice_as_an_option() -> None:
    (options,) = get_args(get_type_hints(fp.models.add)["options"])
    expected = {item.name: declared_type(rule) for _, item, rule in declared_of("", Choices)}
    assert get_type_hints(options) == expected


@pytest.mark.usefixtures("own_home")
def test_an_added_model_is_listed_shown_and_pulled(tmp_path: Path) -> None:
    path = made.identity(tmp_path / "model.onnx", 24)
    assert [tensor["name"] for tensor in fp.models.outputs(path)] == ["same"]
    card = fp.models.add(path, "mine", mean=[0.5], scale=[0.25])
    assert card.preprocess.mean == (127.5,)
    assert "mine" in [model.name for model in fp.models.list()]
    assert fp.models.show("mine")["status"] == "ready"
    assert fp.models.pull("mine").file == card.file


@pytest.mark.usefixtures("own_home")
def test_verify_and_bench_measure_a_model(tmp_path: Path) -> None:
    images = draw(tmp_path / "images", 4)
    certificate = fp.models.verify("embedded", images, limit=2)
    assert certificate.n_images == 2
    assert certificate.precisions["float32"].min_cosine > 0.9999
    (speed,) = fp.models.bench(["embedded"], images=images)
    assert np.isfinite(speed.images_per_second["float32"])
    assert speed.n_images == 4
