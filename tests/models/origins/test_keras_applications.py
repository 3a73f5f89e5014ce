"""Keras Applications: the list, conversion, and invalid options."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from featurepress.embedding.inference import embed_images
from featurepress.errors import ModelError
from featurepress.models import store
from featurepress.models.catalog import EMBEDDED_V1, find_architecture, find_card
from featurepress.models.origins import keras_applications
from featurepress.models.verbs import list_models, show

# Run with keras on OpenVINO; what is asked of keras is written as JSON.
ASK = """
import inspect, json, os, sys, warnings
os.environ["KERAS_BACKEND"] = "openvino"
warnings.filterwarnings("ignore")
import keras
import numpy as np
names = [n for n, f in vars(keras.applications).items() if inspect.isfunction(f) and n[0].isupper()]
pixels = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3)).astype("float32")
answers = {}
for name in names:
    module = sys.modules[getattr(keras.applications, name).__module__]
    answers[name] = np.asarray(module.preprocess_input(pixels.copy())).tolist()
sizes = {}
for name in sys.argv[1:]:
    build = getattr(keras.applications, name)
    model = build(include_top=False, weights=None, pooling="avg", input_shape=(96, 96, 3))
    sizes[name] = [model.count_params(), model.output.shape[-1]]
print(json.dumps({"pixels": pixels.tolist(), "preprocessed": answers, "sizes": sizes}))
"""
BUILT = ["MobileNetV2", "EfficientNetB0", "MobileNetV3Small", "ResNet50", "ConvNeXtTiny"]


@pytest.fixture(scope="module")
def asked() -> dict[str, Any]:
    """Return facts from Keras, in a new process."""
    run = subprocess.run(
        [sys.executable, "-c", ASK, *BUILT], capture_output=True, text=True, check=True, timeout=300
    )
    answers: dict[str, Any] = json.loads(run.stdout)
    return answers


@pytest.fixture
def pictures() -> list[Any]:
    rng = np.random.default_rng(4)
    return [rng.integers(0, 256, (height, 120, 3), np.uint8) for height in (96, 100, 137)]


# -- what keras has ------------------------------------------------------------------------------------------


def test_every_architecture_of_keras_is_listed(asked: dict[str, Any]) -> None:
    assert {one.keras_name for one in keras_applications.architectures().values()} == set(asked["preprocessed"])
    assert len(keras_applications.architectures()) >= 40


def test_every_preprocessing_is_keras_own(asked: dict[str, Any]) -> None:
    """(level - mean) / scale in the channel order, from what stands on the list, is what keras computes."""
    pixels = np.asarray(asked["pixels"])
    for one in keras_applications.architectures().values():
        ordered = pixels if one.channel_order == "RGB" else pixels[..., ::-1]
        ours = (ordered - np.asarray(one.mean)) / np.asarray(one.scale)
        np.testing.assert_allclose(ours, asked["preprocessed"][one.keras_name], atol=2e-5, err_msg=one.name)


def test_the_modes_are_all_four() -> None:
    modes = {one.name: one.mode for one in keras_applications.architectures().values()}
    assert set(modes.values()) == {"tf", "caffe", "torch", "inside the model"}
    assert modes["mobilenet_v2"] == modes["inception_resnet_v2"] == "tf"
    assert (modes["vgg16"], modes["densenet121"], modes["efficientnet_b0"]) == (
        "caffe",
        "torch",
        "inside the model",
    )


def test_sizes_are_those_of_keras(asked: dict[str, Any]) -> None:
    table = json.loads((Path(keras_applications.__file__).parent / "keras_sizes.json").read_text())
    assert set(table) == set(keras_applications.architectures())
    for name, sizes in asked["sizes"].items():
        assert table[keras_applications.spelled(name)] == sizes


def test_input_sizes() -> None:
    known = keras_applications.architectures()
    assert (known["inception_resnet_v2"].default_size, known["inception_resnet_v2"].min_size) == (299, 75)
    assert (known["efficientnet_b7"].default_size, known["mobilenet_v3_small"].default_size) == (600, 224)


def test_names_are_unique_and_readable() -> None:
    names = ["convnext_xlarge", "densenet201", "efficientnet_b0", "efficientnet_v2_b3", "efficientnet_v2_s"]
    names += ["inception_resnet_v2", "inception_v3", "mobilenet", "mobilenet_v2", "mobilenet_v3_large"]
    names += ["nasnet_mobile", "resnet50", "resnet50_v2", "vgg16", "xception"]
    assert set(names) <= set(keras_applications.architectures())


@pytest.mark.parametrize("written", ["MobileNetV2", "mobilenetv2", "mobilenet-v2", "MOBILENET_V2"])
def test_case_and_dashes_of_a_name_do_not_matter(written: str) -> None:
    assert find_architecture(written).name == "mobilenet_v2"


def test_every_licence_is_stated() -> None:
    assert not [one.name for one in keras_applications.architectures().values() if "keras.io" in one.licence]


def test_the_list_has_every_model_once() -> None:
    names = [one.name for one in list_models()]
    assert len(names) == len(set(names))
    assert {"embedded", "mobilenet_v2", "inception_resnet_v2"} <= set(names)
    assert all(one.n_parameters and one.n_features and one.licence for one in list_models())


# -- what becomes of one -------------------------------------------------------------------------------------


def test_keras_weights_and_the_onnx_file_give_the_same_features(
    embedded_weights: Path, pictures: list[Any]
) -> None:
    """The weights of the bundled model in Keras's architecture are the same network."""
    card = find_card("mobilenet_v2", alpha=0.5, weights=str(embedded_weights))
    assert card.n_parameters == EMBEDDED_V1.n_parameters
    # Pictures of the input's own size: the two models resize differently.
    exact = [pixels[:96, :96] for pixels in pictures]
    ours, theirs = (embed_images(one.backbone("flatten"), "float32", exact) for one in (card, EMBEDDED_V1))
    assert theirs.max() > 1
    np.testing.assert_allclose(ours, theirs, atol=2e-5)


def test_a_converted_model_is_as_fast_as_the_onnx_file(embedded_weights: Path) -> None:
    """The transpositions of Keras's export are removed; with them a model takes four times as long."""
    import openvino as ov

    card = find_card("mobilenet_v2", alpha=0.5, weights=str(embedded_weights))
    model = ov.Core().read_model(store.model_file(card.file, card.weights_sha256))
    on_pixels = {model.input(0).get_node().get_name()}
    turns = 0
    for node in model.get_ordered_ops():
        if any(value.get_node().get_name() in on_pixels for value in node.input_values()):
            on_pixels.add(node.get_name())
            turns += node.get_type_name() == "Transpose"
    assert turns <= 2  # in and out


def test_a_model_is_converted_once_and_embedding_imports_no_keras(
    embedded_weights: Path, tmp_path: Path, pictures: list[Any]
) -> None:
    from featurepress.demo.orchard import draw_images

    card = find_card("mobilenet_v2", alpha=0.5, weights=str(embedded_weights))
    message: list[str] = []
    again = find_card(
        "MobileNetV2",
        alpha=0.5,
        weights=str(embedded_weights),
        on_progress=lambda progress: message.append(progress.doing),
    )
    assert again == card
    assert not message
    draw_images(tmp_path / "in", 3)
    program = (
        "import sys; import featurepress as fp\n"
        f"fp.embed({str(tmp_path / 'in')!r}, {str(tmp_path / 'out')!r}, model='mobilenet_v2', alpha=0.5, "
        f"weights={str(embedded_weights)!r}, workers=1)\n"
        "print(*sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    assert not {"keras", "tensorflow", "torch", "requests"} & {
        name.partition(".")[0] for name in run.stdout.split()
    }


def test_two_processes_convert_the_same_model(embedded_weights: Path, tmp_path: Path) -> None:
    program = (
        "from featurepress.models.catalog import find_card\n"
        f"print(find_card('mobilenet_v2', alpha=0.5, size=128, weights={str(embedded_weights)!r}).file)"
    )
    environment = {"FEATUREPRESS_HOME": str(tmp_path / "home"), "PATH": "/usr/bin:/bin"}
    found: list[subprocess.CompletedProcess[str]] = []

    def make() -> None:
        command = [sys.executable, "-c", program]
        found.append(
            subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=environment)
        )

    threads = [threading.Thread(target=make) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [run.returncode for run in found] == [0, 0], [run.stderr for run in found]
    assert len({run.stdout for run in found}) == 1
    models = [path.name for path in (tmp_path / "home" / "models").iterdir()]
    assert models == [found[0].stdout.strip()]


def test_the_fingerprint_depends_on_size_and_weights_but_not_precision(embedded_weights: Path) -> None:
    def fingerprint(**options: Any) -> str:
        card = find_card("mobilenet_v2", alpha=0.5, weights=str(embedded_weights), **options)
        return card.backbone("avg").fingerprint

    assert fingerprint() == fingerprint(size=96)
    assert fingerprint() != fingerprint(size=128)
    assert fingerprint() != EMBEDDED_V1.backbone("avg").fingerprint


def test_a_model_that_was_damaged_on_disk_is_refused(embedded_weights: Path, tmp_path: Path) -> None:
    program = (
        "from featurepress.models.catalog import find_card; from featurepress.models import store\n"
        f"card = find_card('mobilenet_v2', alpha=0.5, weights={str(embedded_weights)!r})\n"
        "path = store.model_file(card.file, card.weights_sha256).with_suffix('.bin')\n"
        "data = bytearray(path.read_bytes()); data[1000] ^= 1; path.write_bytes(data)\n"
        "store.model_file.cache_clear()\n"
        "try: store.model_file(card.file, card.weights_sha256)\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    environment = {"FEATUREPRESS_HOME": str(tmp_path / "home"), "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-c", program]
    run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300, env=environment)
    assert run.stdout.startswith("ModelError The model file")
    assert "model.bin' has the hash" in run.stdout
    assert "Remove the folder" in run.stdout


# -- what is refused -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def known() -> None:
    """Store Keras's list before a test uses an empty home."""
    keras_applications.architectures()


def kept() -> list[str]:
    folder = store.home() / "models"
    return [path.name for path in folder.iterdir()] if folder.is_dir() else []


@pytest.mark.usefixtures("known", "own_home")
@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("inception_resnet_v2", {"size": 74}, ["75 pixels", "--size 74"]),
        ("resnet50", {"alpha": 0.5}, ["no widths", "--alpha"]),
        ("mobilenet_v2", {"weights": "random"}, ["models bench --random"]),
        ("mobilenet_v2", {"weights": "nothing.h5"}, ["no weights file", "nothing.h5"]),
        ("mobilenet_v2", {"weights": __file__}, [".h5 or .weights.h5"]),
        ("embedded", {"size": 224}, ["embedded-v1", "--size"]),
        ("embedded", {"weights": "imagenet", "alpha": 1.0}, ["--alpha", "--weights"]),
        ("mobilnet_v2", {}, ["did you mean", "mobilenet_v2"]),
    ],
)
def test_options_that_a_model_does_not_allow_are_refused(
    name: str, options: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(ModelError) as caught:
        find_card(name, **options)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)
    assert not kept()


@pytest.mark.usefixtures("known", "own_home")
def test_weights_of_another_architecture_are_refused(embedded_weights: Path) -> None:
    for name, alpha in (("mobilenet_v2", 1.0), ("mobilenet", 0.5), ("vgg16", None)):
        with pytest.raises(ModelError, match=f"do not fit {name}") as caught:
            find_card(name, alpha=alpha, weights=str(embedded_weights))
        assert "\n" not in str(caught.value)
    assert not kept()


def test_invalid_weights_are_refused(tmp_path: Path, embedded_weights: Path) -> None:
    text, cut = tmp_path / "text.h5", tmp_path / "cut.weights.h5"
    text.write_text("6 bananas")
    cut.write_bytes(embedded_weights.read_bytes()[:100_000])
    for path in (text, cut):
        with pytest.raises(ModelError, match="not an HDF5 file"):
            find_card("mobilenet_v2", alpha=0.5, weights=str(path))


@pytest.mark.usefixtures("known", "own_home")
def test_nan_weights_are_refused(tmp_path: Path, embedded_weights: Path) -> None:
    copy = tmp_path / "nan.weights.h5"
    copy.write_bytes(embedded_weights.read_bytes())
    with h5py.File(copy, "r+") as file:
        kernels: list[Any] = []
        file.visititems(lambda name, thing: kernels.append(thing) if getattr(thing, "ndim", 0) == 4 else None)
        kernels[0][0, 0, 0, 0] = np.nan  # one of them: the activations would hide it
    with pytest.raises(ModelError, match="NaN"):
        find_card("mobilenet_v2", alpha=0.5, weights=str(copy))
    assert not kept()


def test_a_model_is_described_without_a_download() -> None:
    known = show("VGG16")
    assert known["licence"].startswith("CC-BY")
    assert "featurepress models pull vgg16" in known["status"]
    with pytest.raises(ModelError, match="There is no model"):
        show("vgg17b")


def test_an_unwritable_store_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keras_applications.architectures()
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("FEATUREPRESS_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(ModelError, match=r"Models cannot be stored in .* FEATUREPRESS_HOME"):
        find_card("mobilenet_v2")


def test_an_unreadable_card_is_ignored(own_home: Path) -> None:
    """Damaged, or written by a version with other fields: the model is converted again, and the list works."""
    for number, text in enumerate(['{"card": {"name": "x", "colour": "red"}}', "{", "[]"]):
        folder = own_home / "models" / f"{number:032x}"
        folder.mkdir(parents=True)
        (folder / "card.json").write_text(text)
        assert store.read_card(folder.name) is None
    assert store.stored_cards() == []
    assert len(list_models()) > 40


def test_the_files_of_a_killed_conversion_are_removed(own_home: Path) -> None:
    old, new = own_home / "models" / ".making-old", own_home / "models" / ".making-new"
    for folder in (old, new):
        folder.mkdir(parents=True)
    os.utime(old, (0, 0))
    with store.scratch_folder() as place:
        assert place.is_dir()
    assert new.is_dir()
    assert not old.exists()
    assert not place.exists()
