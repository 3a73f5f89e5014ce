"""Files of Keras, OpenVINO, TensorFlow and TensorFlow Lite."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
from PIL import Image

from featurepress.errors import ModelError
from featurepress.images import decode
from featurepress.models.catalog import find_card
from featurepress.models.openvino import _integers
from featurepress.models.origins import files
from featurepress.models.verbs import add
from tests.models import made
from tests.models.made import BIAS, CHANNELS, HEAD, HEIGHT, KERNEL, WIDTH, Array, features, grid_of, ready

pytestmark = pytest.mark.usefixtures("own_home")

SIDES = (HEIGHT // 2, WIDTH // 2)
WEIGHTS = Path(__file__).parents[4] / "shared" / "weights"
N_PARAMETERS = KERNEL.size + BIAS.size + HEAD.size


def assert_near(found: Array, expected: Array) -> None:
    assert found.dtype == np.float32
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())


def scaled_grid(levels: list[Array]) -> Array:
    """Return the features of the models with a Rescaling layer before pooling."""
    return grid_of([one / 127.5 - 1 for one in levels])


# -- keras ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def keras_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keras")
    made.run_program("make_keras.py", folder, "plain", "scaled", "open", "nested", "bytes")
    return folder


def test_the_last_layer_of_a_keras_model_is_used(keras_files: Path) -> None:
    card = find_card(str(keras_files / "plain.keras"))
    levels = made.pictures()
    assert (card.output, card.pooled, card.grid, card.batch) == ("vector", "vector", (1, 1, 7), None)
    assert card.n_parameters == N_PARAMETERS
    assert set(card.versions) == {"keras", "openvino"}
    assert_near(features(card, levels), grid_of(levels).mean((1, 2)) @ HEAD)


def test_a_layer_is_chosen_by_its_name(keras_files: Path) -> None:
    card = ready(keras_files / "plain.keras", output="grid", mode="tf")
    levels = made.pictures()
    assert (card.output, card.pooled, card.grid) == ("grid", "", (*SIDES, CHANNELS))
    assert_near(features(card, levels, "flatten"), scaled_grid(levels).reshape(len(levels), -1))
    assert_near(features(card, levels, "max"), scaled_grid(levels).max((1, 2)))


def test_an_unknown_layer_lists_close_matches(keras_files: Path) -> None:
    with pytest.raises(ModelError, match=r"has no layer 'vectr'; did you mean 'vector'\?.* --outputs lists them"):
        ready(keras_files / "plain.keras", output="vectr")


def test_the_layers_are_listed(keras_files: Path) -> None:
    listed = files.outputs(str(keras_files / "plain.keras"))
    assert listed == [
        {"name": "grid", "shape": [-1, *SIDES, CHANNELS], "made_by": "Conv2D"},
        {"name": "mean", "shape": [-1, CHANNELS], "made_by": "GlobalAveragePooling2D"},
        {"name": "vector", "shape": [-1, 7], "made_by": "Dense"},
    ]


@pytest.mark.parametrize(("name", "is_said"), [("plain", False), ("scaled", True), ("bytes", True)])
def test_a_model_with_rescaling_has_no_note_about_normalisation(
    keras_files: Path, name: str, is_said: bool
) -> None:
    card = find_card(str(keras_files / f"{name}.keras"))
    assert [note.startswith("Its normalisation is unknown") for note in card.notes] == [True][is_said:]


@pytest.mark.parametrize("name", ["scaled", "bytes"])
def test_a_model_with_rescaling_gets_levels(keras_files: Path, name: str) -> None:
    card = find_card(str(keras_files / f"{name}.keras"))
    levels = made.pictures()
    assert (card.preprocess.mean, card.preprocess.scale) == ((0.0,), (1.0,))
    assert card.preprocess.dtype == ("uint8" if name == "bytes" else "float32")
    assert_near(features(card, levels), scaled_grid(levels).mean((1, 2)) @ HEAD)


def test_images_for_keras_files_are_resized_like_tensorflow(keras_files: Path) -> None:
    steps = find_card(str(keras_files / "plain.keras")).preprocess
    assert (steps.dtype, steps.interpolation, steps.antialias, steps.resize) == (
        *("float32", "bilinear", False, "stretch"),
    )
    assert ready(keras_files / "plain.keras", like="pillow").preprocess.dtype == "uint8"


def test_a_keras_model_of_open_size_needs_a_size(keras_files: Path) -> None:
    path = str(keras_files / "open.keras")
    with pytest.raises(ModelError, match=r"any size .*--size"):
        find_card(path)
    levels = made.pictures(height=10, width=10)
    card = find_card(path, size=10)
    assert (card.preprocess.height, card.preprocess.width) == (10, 10)
    assert_near(features(card, levels), scaled_grid(levels).mean((1, 2)) @ HEAD)


def test_a_keras_model_of_fixed_size_is_resized_or_refused(keras_files: Path) -> None:
    with pytest.raises(ModelError, match=r"images of 10x10; its input .* Leave out --size") as caught:
        find_card(str(keras_files / "plain.keras"), size=10)
    assert "\n" not in str(caught.value)


def test_a_compiled_model_inside_another_one_is_embedded(keras_files: Path) -> None:
    path = keras_files / "nested.keras"
    levels = made.pictures()
    assert_near(features(find_card(str(path)), levels), grid_of(levels).mean((1, 2)) @ HEAD)
    card = ready(path, output="inner")
    assert_near(features(card, levels, "flatten"), grid_of(levels).reshape(len(levels), -1))


def test_keras_of_the_environment_is_not_used(
    keras_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KERAS_BACKEND", "no-such-backend")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "users"))
    assert find_card(str(keras_files / "plain.keras")).output == "vector"
    assert not (tmp_path / "users").exists()


# -- OpenVINO ------------------------------------------------------------------------------------------------


def intermediate(path: Path) -> Path:
    """Write the convolution as the two files of OpenVINO."""
    ov.save_model(
        ov.Core().read_model(made.channels_first(path.with_suffix(".onnx"))), path, compress_to_fp16=False
    )
    return path


def test_an_openvino_model_is_embedded(tmp_path: Path) -> None:
    path = intermediate(tmp_path / "net.xml")
    levels = made.pictures()
    card = add(str(path), "mine", mode="tf")
    assert card.grid == (*SIDES, CHANNELS)
    assert_near(features(card, levels, "flatten"), scaled_grid(levels).reshape(len(levels), -1))


def test_the_weights_beside_an_openvino_model_are_part_of_it(tmp_path: Path) -> None:
    path = intermediate(tmp_path / "net.xml")
    first = ready(path)
    binary = path.with_suffix(".bin")
    kernel = KERNEL.transpose(3, 2, 0, 1)
    assert binary.read_bytes().count(kernel.tobytes()) == 1
    binary.write_bytes(binary.read_bytes().replace(kernel.tobytes(), (2 * kernel).tobytes()))
    second = ready(path)
    levels = made.pictures()
    assert second.weights_sha256 != first.weights_sha256
    assert_near(features(second, levels), grid_of(levels, 2 * KERNEL).mean((1, 2)))
    assert_near(features(first, levels), grid_of(levels).mean((1, 2)))


def test_an_openvino_model_without_its_weights_is_refused(tmp_path: Path) -> None:
    path = intermediate(tmp_path / "net.xml")
    path.with_suffix(".bin").unlink()
    with pytest.raises(ModelError, match=r"net\.xml' cannot be read") as caught:
        ready(path)
    assert "\n" not in str(caught.value)


# -- TensorFlow ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if importlib.util.find_spec("tensorflow") is None:
        pytest.skip("tensorflow is not installed")
    folder = tmp_path_factory.mktemp("saved") / "net"
    folder.mkdir()
    made.run_program("make_saved_model.py", folder)
    (folder / "weights.npz").unlink()
    return folder


@pytest.mark.parametrize("inner", ["", "saved_model.pb"])
def test_a_saved_model_is_embedded(saved_model: Path, inner: str) -> None:
    card = find_card(str(saved_model / inner))
    levels = made.pictures()
    assert (card.name, card.grid, card.batch) == ("net", (*SIDES, CHANNELS), None)
    assert card.preprocess.dtype == "float32"
    assert_near(features(card, levels, "flatten"), grid_of(levels).reshape(len(levels), -1))


def test_every_file_of_a_saved_model_is_part_of_it(saved_model: Path, tmp_path: Path) -> None:
    copy = tmp_path / "net"
    shutil.copytree(saved_model, copy)
    assert files.content_hash(copy, "saved_model") == files.content_hash(saved_model, "saved_model")
    with (copy / "variables" / "variables.data-00000-of-00001").open("r+b") as data:
        data.write(b"\1")
    assert files.content_hash(copy, "saved_model") != files.content_hash(saved_model, "saved_model")


# -- TensorFlow Lite -----------------------------------------------------------------------------------------


@pytest.fixture
def lite() -> Path:
    path = WEIGHTS / "tf2_mobilenet_v2_1.0_224_ptq.tflite"
    if not path.is_file():
        pytest.skip(f"the model {path} is not here")
    return path


def photos(folder: Path) -> dict[Path, Array]:
    return {path: decode(path.read_bytes(), max_pixels=2**28) for path in sorted((folder / "photos").iterdir())}


def test_a_tflite_model_classifies_photographs(lite: Path, shared_data: Path) -> None:
    card = find_card(str(lite))
    assert (card.grid, card.pooled, card.preprocess.dtype) == ((1, 1, 1001), "vector", "uint8")
    labels = (WEIGHTS / "imagenet_labels.txt").read_text("utf-8").splitlines()
    pictures = photos(shared_data)
    best = features(card, list(pictures.values())).argmax(1)
    right = [
        path.stem.partition("_")[2].replace("_", " ").casefold()
        in {word.strip().replace("_", " ").casefold() for word in labels[number].split(",")}
        for path, number in zip(pictures, best, strict=True)
    ]
    assert len(right) == 120
    assert np.mean(right) >= 0.84  # 0.85 where the CPU adds integers up exactly, 0.84 in float32


def test_the_pooled_features_of_a_tflite_model_are_those_of_its_interpreter(lite: Path) -> None:
    card = ready(lite, output="ReduceMean:1")
    assert (card.grid, card.pooled, card.batch) == ((1, 1, 1280), "", None)
    assert (card.preprocess.height, card.preprocess.width) == (224, 224)
    levels = made.pictures(9, 224, 224)
    found = features(card, levels)
    model = ov.Core().read_model(lite)
    (mean,) = (node for node in model.get_ordered_ops() if node.get_type_name() == "ReduceMean")
    whole = ov.Model([ov.opset13.result(mean.output(0))], model.get_parameters())
    compiled = ov.Core().compile_model(whole, "CPU", {"INFERENCE_PRECISION_HINT": "f32", **_integers()})
    alone = np.stack([compiled({0: one[None]})[0].copy().ravel() for one in levels])
    if _integers():  # in float32 another rounding somewhere moves a value by a quantised step
        assert np.corrcoef(found.ravel(), alone.ravel())[0, 1] > 0.99
    else:
        np.testing.assert_allclose(found, alone, atol=1e-4)
    assert alone.std() > 0.1


def test_the_grid_of_a_tflite_model_is_flattened_row_by_row(lite: Path) -> None:
    listed: list[dict[str, Any]] = files.outputs(str(lite))
    last = [one["name"] for one in listed if one["shape"][1:] in ([7, 7, 1280], [1280, 7, 7])][-1]
    card, pooled = ready(lite, output=last), ready(lite, output="ReduceMean:1")
    assert card.grid == (7, 7, 1280)
    picture = np.asarray(Image.effect_mandelbrot((224, 224), (-2, -1.5, 1, 1.5), 60).convert("RGB"))
    flat = features(card, [picture], "flatten").reshape(49, 1280)
    np.testing.assert_allclose(flat.mean(0), features(pooled, [picture])[0], atol=0.06)  # a quantised step
    assert np.corrcoef(flat.mean(0), features(pooled, [picture])[0])[0, 1] > 0.99
