"""The contract of backbones. A new one adds rows to `BACKBONES`."""

from __future__ import annotations

import functools
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest

from featurepress.models.backbone import Backbone, load_backbone, supports_bfloat16
from featurepress.models.catalog import EMBEDDED_V1, find_card
from featurepress.models.origins.files import load_card
from featurepress.progress import ignore_progress
from featurepress.settings import Choices
from featurepress.specs import BackboneSpec
from featurepress.testing import FakeBackbone, fake_backbone

Pixels = npt.NDArray[Any]


class Case(NamedTuple):
    spec: BackboneSpec
    precision: str


WEIGHTS = Path(__file__).parents[3] / "shared" / "weights"


def keras() -> BackboneSpec:
    """Return a Keras model with pixels of float32."""
    weights = WEIGHTS / "embedded-v1.weights.h5"
    if not weights.is_file():
        pytest.skip(f"{weights} is not here")
    return find_card("mobilenet_v2", alpha=0.5, weights=str(weights)).backbone("avg")


def quantised() -> BackboneSpec:
    """Return a quantised model with pixels of uint8."""
    model = WEIGHTS / "tf2_mobilenet_v2_1.0_224_ptq.tflite"
    if not model.is_file():
        pytest.skip(f"{model} is not here")
    return load_card(str(model), Choices(output="ReduceMean:1"), on_progress=ignore_progress).backbone("avg")


BACKBONES: dict[str, tuple[Callable[[], BackboneSpec], str]] = {
    **{
        f"embedded {pooling} {precision}": (functools.partial(EMBEDDED_V1.backbone, pooling), precision)
        for pooling in ("avg", "flatten", "max")
        for precision in ("float32", "bfloat16")
    },
    "keras float32": (keras, "float32"),
    "keras bfloat16": (keras, "bfloat16"),
    "quantised float32": (quantised, "float32"),
    "fake float32": (fake_backbone, "float32"),
    "fake bfloat16": (functools.partial(fake_backbone, bfloat16=True, error=0.01), "bfloat16"),
}


@pytest.fixture(params=BACKBONES, scope="module")
def case(request: pytest.FixtureRequest) -> Case:
    describe, precision = BACKBONES[request.param]
    case = Case(describe(), precision)
    if case.precision == "bfloat16" and not supports_bfloat16(case.spec):
        pytest.skip("this CPU has no native bfloat16")
    return case


@pytest.fixture
def backbone(case: Case) -> Backbone:
    return load_backbone(case.spec, case.precision)


def pictures(case: Case, n: int, seed: int = 0) -> Pixels:
    """Return noise, gradients and flat colours: (n, H, W, 3) of the backbone's type."""
    steps, rng = case.spec.preprocess, np.random.default_rng(seed)
    noise = rng.integers(0, 256, (n, steps.height, steps.width, 3), np.uint8)
    noise[1::3] = np.linspace(0, 255, steps.width, dtype=np.uint8)[None, None, :, None]
    noise[2::3] = rng.integers(0, 256, (len(noise[2::3]), 1, 1, 3), np.uint8)
    return noise.astype(steps.dtype)


def run(backbone: Backbone, batch: Any) -> npt.NDArray[np.float32]:
    return backbone(batch).copy()


def test_features_have_the_declared_shape_and_are_finite(case: Case, backbone: Backbone) -> None:
    features = run(backbone, pictures(case, backbone.batch_size))
    assert features.shape == (backbone.batch_size, case.spec.n_features)
    assert features.dtype == np.float32
    assert np.isfinite(features).all()
    assert features.any(axis=1).all()


def test_different_images_have_different_features(case: Case, backbone: Backbone) -> None:
    features = run(backbone, pictures(case, backbone.batch_size))
    assert len(np.unique(features, axis=0)) >= backbone.batch_size * 2 // 3


def test_the_precision_is_reported(case: Case, backbone: Backbone) -> None:
    assert backbone.precision == case.precision


def test_the_same_batch_has_the_same_features(case: Case, backbone: Backbone) -> None:
    batch = pictures(case, backbone.batch_size)
    assert run(backbone, batch).tobytes() == run(backbone, batch.copy()).tobytes()


def test_the_pixels_are_not_changed(case: Case, backbone: Backbone) -> None:
    batch = pictures(case, backbone.batch_size)
    before = batch.copy()
    backbone(batch)
    np.testing.assert_array_equal(batch, before)


def test_features_do_not_depend_on_the_other_images_of_a_batch(case: Case, backbone: Backbone) -> None:
    n = backbone.batch_size
    batch = pictures(case, n)
    expected = run(backbone, batch)
    assert run(backbone, batch[::-1].copy())[::-1].tobytes() == expected.tobytes()
    assert run(backbone, np.roll(batch, 3, axis=0))[(np.arange(n) + 3) % n].tobytes() == expected.tobytes()
    for position in (0, 1, n - 1):
        for fill in (0, 255):
            padded = np.full_like(batch, fill)
            padded[position] = batch[0]
            assert run(backbone, padded)[position].tobytes() == expected[0].tobytes()
    strangers = pictures(case, n, seed=1)
    strangers[2] = batch[1]
    assert run(backbone, strangers)[2].tobytes() == expected[1].tobytes()


def test_a_buffer_can_be_reused(case: Case, backbone: Backbone) -> None:
    room = np.zeros_like(pictures(case, backbone.batch_size))
    for seed in range(3):
        batch = pictures(case, backbone.batch_size, seed)
        room[:] = batch
        assert run(backbone, room).tobytes() == run(backbone, batch).tobytes()


@pytest.mark.parametrize("way", ["pickle", "json"])
def test_a_pickled_specification_loads_the_same_backbone(case: Case, backbone: Backbone, way: str) -> None:
    if way == "pickle":
        spec = pickle.loads(pickle.dumps(case.spec))
    else:
        spec = BackboneSpec.from_json(json.loads(json.dumps(case.spec.to_json())))
    assert spec == case.spec
    assert spec.fingerprint == case.spec.fingerprint
    assert load_backbone(spec, case.precision) is backbone


def test_a_backbone_is_loaded_once_per_process_and_precision() -> None:
    spec = fake_backbone(bfloat16=True, name="of this test alone")
    before = FakeBackbone.loads
    loaded = [load_backbone(spec, "float32") for _ in range(5)]
    assert FakeBackbone.loads == before + 1
    assert all(one is loaded[0] for one in loaded)
    assert load_backbone(spec, "bfloat16").precision == "bfloat16"
    assert FakeBackbone.loads == before + 2


def test_bfloat16_without_support_is_reported_as_float32() -> None:
    spec = fake_backbone(bfloat16=False)
    assert not supports_bfloat16(spec)
    backbone = load_backbone(spec, "bfloat16")
    assert backbone.precision == "float32"
    assert backbone is load_backbone(spec, "float32")


def test_precisions_differ_little(case: Case) -> None:
    if case.precision == "float32":
        return  # it is compared with the other one's row
    full, low = (load_backbone(case.spec, precision) for precision in ("float32", "bfloat16"))
    batch = pictures(case, full.batch_size)
    one, other = run(full, batch), run(low, batch)
    assert one.tobytes() != other.tobytes()
    cosines = (one * other).sum(axis=1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)
    assert cosines.min() > 0.99
