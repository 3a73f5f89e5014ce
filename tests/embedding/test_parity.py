"""The parity certificate: our features against those of TensorFlow's own Keras, from the same decoded pictures."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from featurepress.embedding.parity import Certificate, verify
from featurepress.errors import ModelError, SourceError
from featurepress.models import store
from featurepress.models.catalog import find_card
from featurepress.models.origins.files import add
from featurepress.progress import ignore_progress
from featurepress.settings import Choices
from tests.models import made
from tests.running import draw, embed

LONG = pytest.mark.long
# Keras's name, side of the input, width (0: has none), our name. One of each kind of preprocessing runs always.
CASES = [
    ("MobileNetV2", 96, 1.0, "mobilenet_v2"),
    ("EfficientNetB0", 224, 0.0, "efficientnet_b0"),
    pytest.param("MobileNetV2", 96, 0.5, "mobilenet_v2", marks=LONG),
    pytest.param("MobileNetV2", 224, 1.0, "mobilenet_v2", marks=LONG),
    pytest.param("MobileNetV2", 224, 0.5, "mobilenet_v2", marks=LONG),
    pytest.param("InceptionResNetV2", 139, 0.0, "inception_resnet_v2", marks=LONG),
    pytest.param("ResNet50", 224, 0.0, "resnet50", marks=LONG),
    pytest.param("ConvNeXtTiny", 224, 0.0, "convnext_tiny", marks=LONG),
]
Draw = Callable[[str, int, float], Path]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("pictures"), 12, image_size_px=100)


@pytest.fixture(scope="module")
def drawn(model_home: Path) -> Draw:
    """Return what draws the weights of a case with TensorFlow, once for all workers of pytest-xdist."""
    if importlib.util.find_spec("tensorflow") is None:
        pytest.skip("TensorFlow is not installed")
    folder = model_home.parent / "drawn"

    def draw_weights(name: str, size: int, alpha: float) -> Path:
        with FileLock(f"{folder}.lock"):
            folder.mkdir(exist_ok=True)
            path = folder / f"{name}-{size}-{alpha:g}.weights.h5"
            if not path.exists():
                _draw_weights(folder, name, size, alpha)
        return path

    return draw_weights


def _draw_weights(folder: Path, name: str, size: int, alpha: float) -> None:
    script = Path(__file__).parents[1] / "references" / "draw_weights.py"
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, str(script), str(folder), name, str(size), str(alpha)]
    subprocess.run(command, check=True, capture_output=True, timeout=600, env=environment)


@pytest.mark.parametrize(("keras_name", "size", "alpha", "name"), CASES)
def test_keras_applications_equal_tensorflow(
    drawn: Draw, pictures: Path, keras_name: str, size: int, alpha: float, name: str
) -> None:
    weights = drawn(keras_name, size, alpha)
    options: dict[str, Any] = {"size": size, "alpha": alpha or None, "weights": str(weights)}
    certificate = verify(name, pictures, **options)
    assert "TensorFlow" in certificate.reference
    assert certificate.n_images == 12
    found = certificate.precisions["float32"]
    assert found.min_cosine >= 0.99999
    assert found.largest_feature > 0.01
    if name == "mobilenet_v2":
        assert found.max_difference <= 1e-3 * found.largest_feature


@pytest.mark.long
@pytest.mark.parametrize(("name", "pooling"), [("convnext_tiny", "flatten"), ("convnext_tiny", "max")])
def test_a_layer_behind_the_pooling_is_kept(drawn: Draw, pictures: Path, name: str, pooling: str) -> None:
    """ConvNeXt normalises what it has pooled: its pooled features are not its pooled grid."""
    weights = str(drawn("ConvNeXtTiny", 224, 0.0))
    assert verify(name, pictures, pooling=pooling, weights=weights).precisions["float32"].min_cosine >= 0.99999
    files = {find_card(name, weights=weights, pooling=one).file for one in ("avg", "max", "flatten")}
    assert len(files) == 3


@pytest.mark.parametrize("pooling", [pytest.param("flatten", marks=LONG), "max"])
def test_every_pooling_of_one_file(drawn: Draw, pictures: Path, pooling: str) -> None:
    weights = str(drawn("MobileNetV2", 96, 1.0))
    certificate = verify("mobilenet_v2", pictures, pooling=pooling, weights=weights)
    assert certificate.precisions["float32"].min_cosine >= 0.99999
    assert len({find_card("mobilenet_v2", weights=weights, pooling=one).file for one in ("avg", "flatten")}) == 1


@pytest.mark.usefixtures("own_home")
def test_the_embedded_model_is_held_against_plain_numpy(pictures: Path) -> None:
    certificate = verify("embedded", pictures)
    assert "OpenVINO" in certificate.reference
    assert certificate.precisions["float32"].min_cosine >= 0.9999


def test_keras_on_openvino_serves_where_tensorflow_is_missing(pictures: Path, embedded_weights: Path) -> None:
    """The same certificate in an environment in which TensorFlow cannot be found."""
    program = (
        "import importlib.util, json, sys, dataclasses\n"
        "find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *rest: None if name == 'tensorflow' else find(name, *rest)\n"
        "from featurepress.embedding.parity import verify\n"
        f"found = verify('mobilenet_v2', {str(pictures)!r}, alpha=0.5, weights={str(embedded_weights)!r})\n"
        "print(json.dumps(dataclasses.asdict(found)))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=True)
    certificate = json.loads(run.stdout)
    assert certificate["reference"].startswith("Keras")
    assert "OpenVINO" in certificate["reference"]
    assert certificate["precisions"]["float32"]["min_cosine"] >= 0.99999


def test_a_wrong_preprocessing_would_be_seen(pictures: Path, embedded_weights: Path) -> None:
    """The certificate can fail: the same weights, held against a model whose pictures are resized otherwise."""
    from dataclasses import replace

    from featurepress.embedding.inference import decode_images, embed_images
    from featurepress.embedding.parity import nearness
    from featurepress.settings import Settings
    from featurepress.sources import Listing, describe

    card = find_card("mobilenet_v2", alpha=0.5, weights=str(embedded_weights))
    spec = card.backbone("avg")
    other = replace(spec, preprocess=replace(spec.preprocess, channel_order="BGR"))
    specs = describe(pictures)
    decoded = [p for _, p in decode_images(specs, Settings(), Listing(specs, Settings().listing))]
    right, wrong = (embed_images(one, "float32", decoded) for one in (spec, other))
    assert nearness(right, right).min_cosine == pytest.approx(1)
    assert nearness(wrong, right).min_cosine < 0.999


def test_the_certificate_is_kept_and_goes_into_the_manifest(
    pictures: Path, embedded_weights: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"alpha": 0.5, "weights": str(embedded_weights)}
    certificate = verify("mobilenet_v2", pictures, pooling="max", **options)
    kept = store.read_note(find_card("mobilenet_v2", **options).file, store.CERTIFICATE)["max"]
    assert kept["fingerprint"] == certificate.fingerprint
    features = embed(
        pictures, tmp_path / "out", model="mobilenet_v2", pooling="max", precision="float32", **options
    )
    assert features.manifest is not None
    assert features.manifest["parity"] == kept
    assert features.fingerprint == certificate.fingerprint


def test_nothing_to_verify_on(tmp_path: Path) -> None:
    (tmp_path / "list.jpg").write_text("6 bananas")
    with pytest.raises(SourceError, match="None of the images"):
        verify("embedded", tmp_path)


@pytest.mark.usefixtures("own_home")
def test_a_certificate_says_what_it_is_of(pictures: Path) -> None:
    certificate = verify("embedded", pictures, limit=3)
    assert isinstance(certificate, Certificate)
    assert (certificate.model, certificate.pooling, certificate.n_images) == ("embedded-v1", "avg", 3)
    assert {"openvino", "opencv-python-headless"} <= set(certificate.versions)


def test_an_unknown_model_is_refused(pictures: Path) -> None:
    with pytest.raises(ModelError, match="There is no model"):
        verify("embeded", pictures)


@pytest.mark.usefixtures("own_home")
def test_a_keras_file_of_ones_own_is_held_against_keras(pictures: Path, tmp_path: Path) -> None:
    """And a file that has changed since is no reference."""
    made.run_program("make_keras.py", tmp_path, "scaled", "plain")
    path = tmp_path / "scaled.keras"
    certificate = verify(str(path), pictures)
    assert certificate.reference.startswith("Keras")
    assert certificate.precisions["float32"].min_cosine >= 0.99999
    add(str(path), "changing", Choices(), reserved=[], on_progress=ignore_progress)
    path.write_bytes((tmp_path / "plain.keras").read_bytes())
    assert verify("changing", pictures).reference.startswith("OpenVINO")
