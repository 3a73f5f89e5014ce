"""Files that are not models or cannot be embedded: an error of one line, and nothing is stored."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from featurepress.errors import ModelError, SettingError
from featurepress.models.catalog import find_card
from featurepress.models.origins import files
from featurepress.models.store import names
from featurepress.settings import Choices
from tests.models import made
from tests.models.made import CHANNELS, HEIGHT, KERNEL, WIDTH, kept

pytestmark = pytest.mark.usefixtures("own_home")

SIDES = (HEIGHT // 2, WIDTH // 2)


def refusal(path: Path, **choices: Any) -> str:
    """Return the error of a file that is refused by every function."""
    good = files.load_card(
        str(made.identity(path.parent / "good.onnx")), Choices(), on_progress=lambda progress: None
    )
    before = kept()
    assert before
    with pytest.raises(ModelError) as caught:
        files.add(str(path), "mine", Choices(**choices), reserved=[], on_progress=lambda progress: None)
    assert kept() == before
    assert names() == []
    assert "\n" not in str(caught.value)
    assert files.load_card(good.origin["file"], Choices(), on_progress=lambda progress: None) == good
    return str(caught.value)


# -- no models -----------------------------------------------------------------------------------------------


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none.onnx") == f"There is no model file '{tmp_path / 'none.onnx'}'."
    with pytest.raises(ModelError, match="There is no model file"):
        find_card(str(tmp_path / "none.onnx"))
    with pytest.raises(ModelError, match="There is no model file"):
        files.outputs(str(tmp_path / "none.onnx"))


@pytest.mark.parametrize("name", ["net.pt", "net.h5", "net", "net.onnx.zip"])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"weights")
    said = refusal(tmp_path / name)
    assert "is not a model: it must be a .keras, .onnx, .tflite, .xml file" in said
    assert ("Save it again as .keras" in said) == name.endswith(".h5")


@pytest.mark.parametrize("name", ["folder", "folder.onnx", "folder.keras"])
def test_a_folder_without_a_saved_model_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    assert "is not a model" in refusal(tmp_path / name)


@pytest.mark.parametrize("suffix", [".keras", ".onnx", ".tflite", ".xml"])
@pytest.mark.parametrize("content", [b"", b"bananas\n" * 20, bytes(500), bytes(range(256)) * 4], ids=len)
def test_something_else_under_a_model_s_name_is_refused(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"net{suffix}"
    path.write_bytes(content)
    assert str(path) in refusal(path)


def test_an_invalid_saved_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "saved_model.pb").write_bytes(b"bananas")
    assert "cannot be read" in refusal(tmp_path / "net")


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.95])
def test_a_truncated_model_is_refused(tmp_path: Path, share: float) -> None:
    path = made.channels_first(tmp_path / "net.onnx")
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert str(path) in refusal(path)


@pytest.mark.parametrize("config", [b"{}", b"[]", b"null", b"{", b'"model"', b"\xff", b"[" * 100_000])
def test_an_invalid_keras_archive_is_refused(tmp_path: Path, config: bytes) -> None:
    path = tmp_path / "net.keras"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", config)
        archive.writestr("metadata.json", b"{}")
        archive.writestr("model.weights.h5", b"no weights")
    assert str(path) in refusal(path)


# -- models that cannot be embedded ---------------------------------------------------------------------------


def two_inputs(path: Path) -> Path:
    shape: list[int | str | None] = ["N", 3, HEIGHT, WIDTH]
    given = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("left", "right")]
    result = helper.make_tensor_value_info("sum", TensorProto.FLOAT, shape)
    graph = helper.make_graph([helper.make_node("Add", ["left", "right"], ["sum"])], "made", given, [result])
    path.write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    )
    return path


def without_batch(path: Path) -> Path:
    """Write a model that returns one vector for all images."""
    tail = [helper.make_node("ReduceMean", ["grid"], ["one"], axes=[0, 2, 3], keepdims=0)]
    return made.channels_first(path, tail=tail, output=("one", [CHANNELS]))


def as_many_as_bright(path: Path) -> Path:
    """Write a model whose number of features depends on the image."""
    tail = [helper.make_node("NonZero", ["grid"], ["where"]), helper.make_node("Cast", ["where"], ["cast"], to=1)]
    return made.channels_first(path, tail=tail, output=("cast", [4, "many"]))


def damaged(value: float) -> Callable[[Path], Path]:
    kernel = KERNEL.copy()
    kernel[1, 0, 2, 3] = value
    return lambda path: made.channels_first(path, kernel=kernel)


def of_shape(*shape: int | str) -> Callable[[Path], Path]:
    node = helper.make_node("Add", ["pixels", "pixels"], ["double"])
    return lambda path: made.save(path, [node], [], shape, ("double", shape))


INVALID: dict[str, tuple[Callable[[Path], Path], str]] = {
    "two inputs": (two_inputs, "must have one input, the pixels. It has 2: left"),
    "no batch": (without_batch, "row per image"),
    "open features": (as_many_as_bright, "row per image"),
    "NaN": (damaged(np.nan), "NaN"),
    "infinite": (damaged(np.inf), "NaN or infinite"),
    "grey": (of_shape("N", 1, 8, 8), "three channels"),
    "four channels": (of_shape("N", 8, 8, 4), "three channels"),
    "a vector": (of_shape("N", 12), "must have four axes"),
    "video": (of_shape("N", 3, 4, 8, 8), "must have four axes"),
}


@pytest.mark.parametrize("case", INVALID)
def test_a_model_that_cannot_be_embedded_is_refused(tmp_path: Path, case: str) -> None:
    write, part = INVALID[case]
    assert part in refusal(write(tmp_path / "net.onnx"))


def test_a_size_that_the_model_does_not_accept_is_refused(tmp_path: Path) -> None:
    rows = made.constant("rows", [0, CHANNELS * SIDES[0] * SIDES[1]], np.int64)
    head = made.constant("head", np.ones((CHANNELS * SIDES[0] * SIDES[1], 7)))
    tail = [
        helper.make_node("Reshape", ["grid", "rows"], ["flat"]),
        helper.make_node("MatMul", ["flat", "head"], ["vector"]),
    ]
    path = made.channels_first(
        tmp_path / "net.onnx", tail=tail, constants=[rows, head], output=("vector", ["N", 7])
    )
    assert "does not accept images of 32x32" in refusal(path, size=32)
    assert find_card(str(path)).grid == (1, 1, 7)


def test_a_size_too_small_for_the_model_is_refused(tmp_path: Path) -> None:
    path = made.channels_first(tmp_path / "net.onnx")
    assert "does not accept images of 1x1" in refusal(path, size=1)


@pytest.mark.parametrize("size", [0, -4])
def test_an_invalid_size_is_refused(size: int) -> None:
    with pytest.raises(SettingError, match="must be an integer from 1 to 4096"):
        Choices(size=size)


@pytest.mark.parametrize(
    ("shape", "layout"), [(("N", 1, 8, 8), "NCHW"), (("N", 3, 8, 8), "NHWC"), (("N", 9), "NHWC")]
)
def test_a_layout_that_is_not_the_model_s_is_refused(tmp_path: Path, shape: Any, layout: str) -> None:
    assert f"It has the shape [{', '.join(map(str, shape))}]" in refusal(
        of_shape(*shape)(tmp_path / "net.onnx"), layout=layout
    ).replace("?", "N").replace(",", ", ")


def test_tensors_of_integers_are_not_offered(tmp_path: Path) -> None:
    tail = [
        helper.make_node("ArgMax", ["grid"], ["best"], axis=1, keepdims=0),
        helper.make_node("Cast", ["best"], ["cast"], to=TensorProto.FLOAT),
    ]
    path = made.channels_first(tmp_path / "net.onnx", tail=tail, output=("cast", ["N", *SIDES]))
    listed = [one["name"] for one in files.outputs(str(path))]
    assert "grid" in listed
    assert "best" not in listed


def test_a_home_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("FEATUREPRESS_HOME", str(tmp_path / "file"))
    with pytest.raises(ModelError, match=r"Models cannot be stored in .*FEATUREPRESS_HOME"):
        find_card(str(made.identity(tmp_path / "net.onnx")))
