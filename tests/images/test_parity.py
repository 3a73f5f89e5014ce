"""Every way of resizing against the library whose models were trained with it, from the same pixels.

Tolerances on the scale from 0 to 255: TensorFlow 0.0127 (1e-4 on the scale from -1 to 1), Pillow none.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from featurepress.errors import SettingError
from featurepress.images import preprocess
from featurepress.images.preprocess import spans
from featurepress.specs import PreprocessSpec
from tests.images.reference import noise

Array = npt.NDArray[Any]

TENSORFLOW_TOLERANCE = 1e-4 * 127.5
FLOAT_WAYS = [("bilinear", False), ("bilinear", True), ("bicubic", False), ("bicubic", True), ("area", True)]
FILTERS = ["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
# Larger and smaller than the targets, both at once, one side the same, a single row, and past OpenCV's exact range.
SIZES = [
    (137, 91),
    (100, 100),
    (375, 500),
    (20, 30),
    (1, 50),
    (96, 96),
    (1000, 97),
    (96, 200),
    (513, 500),
    (2000, 1500),
]
TARGETS = [(96, 96), (224, 160)]


PICTURES = {f"{height}x{width}": noise(height, width, height * width) for height, width in SIZES}


def embedded(pixels: Array, spec: PreprocessSpec) -> Array:
    out = np.zeros((spec.height, spec.width, 3), spec.dtype)
    preprocess(pixels, spec, out)
    return out


@pytest.fixture(scope="module")
def tensorflow(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[Any, ...], Array]:
    """Return TensorFlow's images by (image, height, width, method, antialias)."""
    if importlib.util.find_spec("tensorflow") is None:
        pytest.skip("TensorFlow is not installed")
    folder = tmp_path_factory.mktemp("tensorflow")
    cases = [(name, *target, *way) for name in PICTURES for target in TARGETS for way in FLOAT_WAYS]
    # For crop: the whole of 137x91 with the shorter side at 120, and of 375x500 with the shorter one at 256.
    cases += [("137x91", 180, 120, *way) for way in FLOAT_WAYS] + [
        ("375x500", 256, 341, *way) for way in FLOAT_WAYS
    ]
    np.savez(folder / "pictures.npz", **dict[str, Any](PICTURES))
    script = Path(__file__).parents[1] / "references" / "tensorflow_resize.py"
    command = [sys.executable, str(script), "pictures.npz", "results.npz", json.dumps(cases)]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=300, env=environment)
    results = np.load(folder / "results.npz")
    return {case: results[str(number)] for number, case in enumerate(cases)}


@pytest.mark.parametrize(("method", "antialias"), FLOAT_WAYS)
@pytest.mark.parametrize(("height", "width"), TARGETS)
def test_float32_equals_tensorflow(
    tensorflow: dict[tuple[Any, ...], Array], method: str, antialias: bool, height: int, width: int
) -> None:
    spec = PreprocessSpec(height, width, interpolation=method, antialias=antialias, dtype="float32")
    for name, pixels in PICTURES.items():
        expected = tensorflow[name, height, width, method, antialias]
        assert np.abs(embedded(pixels, spec) - expected).max() <= TENSORFLOW_TOLERANCE, name


@pytest.mark.parametrize(("method", "antialias"), FLOAT_WAYS)
@pytest.mark.parametrize(("name", "edge", "size"), [("137x91", 120, (96, 112)), ("375x500", 256, (224, 224))])
def test_crop_in_float32_equals_tensorflow(
    tensorflow: dict[tuple[Any, ...], Array],
    method: str,
    antialias: bool,
    name: str,
    edge: int,
    size: tuple[int, int],
) -> None:
    spec = PreprocessSpec(
        *size, resize="crop", shortest_edge=edge, interpolation=method, antialias=antialias, dtype="float32"
    )
    (whole,) = [
        result
        for (case, height, width, *way), result in tensorflow.items()
        if case == name and min(height, width) == edge and way == [method, antialias]
    ]
    top, left = (whole.shape[0] - size[0]) // 2, (whole.shape[1] - size[1]) // 2
    expected = whole[top : top + size[0], left : left + size[1]]
    assert np.abs(embedded(PICTURES[name], spec) - expected).max() <= TENSORFLOW_TOLERANCE


@pytest.mark.parametrize("name", FILTERS)
def test_uint8_equals_pillow(name: str) -> None:
    for height, width in TARGETS:
        spec = PreprocessSpec(height, width, interpolation=name)
        for pixels in PICTURES.values():
            expected = Image.fromarray(pixels).resize((width, height), Image.Resampling[name.upper()])
            assert (embedded(pixels, spec) == np.asarray(expected)).all()


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize(("size", "edge"), [(96, 96), (96, 120), (224, 256)])
def test_crop_in_uint8_equals_pillow(name: str, size: int, edge: int) -> None:
    spec = PreprocessSpec(size, size, resize="crop", shortest_edge=edge, interpolation=name)
    for pixels in PICTURES.values():
        height, width = pixels.shape[:2]
        long = int(edge * max(height, width) / min(height, width))
        tall, wide = (edge, long) if height <= width else (long, edge)
        if tall * wide > 2**24:
            continue
        whole = Image.fromarray(pixels).resize((wide, tall), Image.Resampling[name.upper()])
        left, top = (wide - size) // 2, (tall - size) // 2
        expected = np.asarray(whole.crop((left, top, left + size, top + size)))
        assert (embedded(pixels, spec) == expected).all()


@pytest.mark.parametrize("spec_of", ["uint8", "float32"])
def test_a_long_strip_is_resized_in_bounded_memory(spec_of: str) -> None:
    """One row of 100,000 pixels to 224 rows would be 15 GB."""
    strip = np.broadcast_to(np.arange(100_000) % 251, (3, 1, 100_000)).T.astype(np.uint8).transpose(1, 0, 2).copy()
    spec = PreprocessSpec(
        224, 224, resize="crop", shortest_edge=224, interpolation="bilinear", antialias=True, dtype=spec_of
    )
    got = embedded(strip, spec)
    assert spans(1, 100_000, spec)[1].of == 22_400_000
    assert abs(int(got[0, 112, 0]) - int(strip[0, 50_000, 0])) <= 2
    assert (got[0] == got[-1]).all()


def test_images_too_large_for_opencv_are_resized() -> None:
    strip = np.tile(np.arange(40_000) % 251, (2, 1)).astype(np.uint8)[:, :, None].repeat(3, 2)
    spec = PreprocessSpec(2, 400, interpolation="bilinear", antialias=False, dtype="float32")
    got = embedded(strip, spec)
    # Target pixel i looks at (i + 0.5) * 100 - 0.5: between source pixels 100 i + 49 and 100 i + 50.
    expected = (strip[0, 49::100, 0].astype(float) + strip[0, 50::100, 0]) / 2
    assert np.abs(got[0, :, 0] - expected).max() < 0.1


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"interpolation": "bilinaer"}, "interpolation"),
        ({"interpolation": "area"}, "for uint8"),
        ({"interpolation": "lanczos", "dtype": "float32"}, "for float32"),
        ({"interpolation": "bilinear", "antialias": False}, "antialias"),
        ({"resize": "crop"}, "stretch"),
        ({"resize": "crop", "interpolation": "bilinear"}, "shortest_edge"),
        ({"resize": "crop", "interpolation": "bilinear", "shortest_edge": 95}, "at least 96"),
        ({"shortest_edge": 96}, "None for 'stretch'"),
        ({"scale": (0.0,)}, "none of them 0"),
        ({"mean": (1.0, 2.0)}, "one number or three"),
        ({"channel_order": "RBG"}, "channel_order"),
        ({"dtype": "float16"}, "dtype"),
    ],
)
def test_unknown_interpolations_are_refused(wrong: dict[str, Any], word: str) -> None:
    with pytest.raises(SettingError, match=word):
        PreprocessSpec(**{"height": 96, "width": 96, **wrong})
