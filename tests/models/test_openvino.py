"""The graph of the OpenVINO backbone, compared with the unchanged model file."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import openvino as ov
import pytest

from featurepress.errors import ModelError
from featurepress.models.backbone import load_backbone, supports_bfloat16
from featurepress.models.catalog import EMBEDDED_V1
from featurepress.models.openvino import BATCH_SIZE, OpenVinoBackbone
from featurepress.models.store import model_file

Array = npt.NDArray[Any]


@functools.cache
def pixels() -> Array:
    """Return smooth blobs with noise: (16, 96, 96, 3) uint8."""
    rng = np.random.default_rng(3)
    small = rng.integers(0, 256, (BATCH_SIZE, 6, 6, 3), np.uint8)
    smooth = np.stack([cv2.resize(one, (96, 96), interpolation=cv2.INTER_CUBIC) for one in small])
    noisy = smooth.astype(int) + rng.integers(-20, 21, smooth.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8)


@functools.cache
def reference_grid() -> Array:
    """Return the output of the file for x / 127.5 - 1 in float32: (16, 3, 3, 1280)."""
    compiled = ov.Core().compile_model(
        str(model_file(EMBEDDED_V1.file, EMBEDDED_V1.weights_sha256)), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    inputs = pixels().astype(np.float32) / np.float32(127.5) - np.float32(1)
    grid: Array = compiled({0: inputs})[0].copy()
    return grid


def features(pooling: str, precision: str = "float32") -> Array:
    return load_backbone(EMBEDDED_V1.backbone(pooling), precision)(pixels()).copy()


def test_flatten_is_the_grid_row_by_row() -> None:
    assert reference_grid().shape == (BATCH_SIZE, *EMBEDDED_V1.grid)
    np.testing.assert_allclose(features("flatten"), reference_grid().reshape(BATCH_SIZE, -1), atol=1e-5)


def test_avg_and_max_are_the_mean_and_the_maximum_of_the_grid() -> None:
    np.testing.assert_allclose(features("avg"), reference_grid().mean(axis=(1, 2)), atol=1e-5)
    np.testing.assert_allclose(features("max"), reference_grid().max(axis=(1, 2)), atol=1e-5)


def test_avg_and_max_are_those_of_the_flatten_features() -> None:
    grid = features("flatten").reshape(BATCH_SIZE, *EMBEDDED_V1.grid)
    np.testing.assert_allclose(features("avg"), grid.mean(axis=(1, 2)), atol=2e-6)
    np.testing.assert_array_equal(features("max"), grid.max(axis=(1, 2)))


def test_features_are_those_of_relu6() -> None:
    flat = features("flatten")
    assert flat.min() == 0
    assert 0 < flat.max() <= 6


def test_colours_are_not_swapped() -> None:
    swapped = np.ascontiguousarray(pixels()[..., ::-1])
    other = load_backbone(EMBEDDED_V1.backbone("avg"), "float32")(swapped).copy()
    assert np.abs(other - features("avg")).max() > 0.05


def hint(backbone: OpenVinoBackbone) -> str:
    compiled = backbone._request.get_compiled_model()
    return str(compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name())


def test_the_precision_hint_is_honoured() -> None:
    full = load_backbone(EMBEDDED_V1.backbone("avg"), "float32")
    assert isinstance(full, OpenVinoBackbone)
    assert hint(full) == "f32"
    if not supports_bfloat16(EMBEDDED_V1.backbone("avg")):
        pytest.skip("this CPU has no native bfloat16")
    low = load_backbone(EMBEDDED_V1.backbone("avg"), "bfloat16")
    assert isinstance(low, OpenVinoBackbone)
    assert hint(low) == "bf16"
    error = np.abs(features("avg", "bfloat16") - reference_grid().mean(axis=(1, 2))).max()
    assert 1e-4 < error < 0.5


def test_one_thread_computes() -> None:
    backbone = load_backbone(EMBEDDED_V1.backbone("avg"), "float32")
    assert isinstance(backbone, OpenVinoBackbone)
    compiled = backbone._request.get_compiled_model()
    assert compiled.get_property("NUM_STREAMS") == 1
    assert compiled.get_property("INFERENCE_NUM_THREADS") == 1


def test_a_batch_of_another_size_is_refused_not_padded() -> None:
    backbone = load_backbone(EMBEDDED_V1.backbone("avg"), "float32")
    with pytest.raises(RuntimeError):
        backbone(pixels()[:3].copy())


def test_weights_that_nobody_knows_are_refused() -> None:
    spec = replace(EMBEDDED_V1.backbone("avg"), file="0" * 32)
    with pytest.raises(ModelError, match="The model of this plan"):
        load_backbone(spec, "float32")
