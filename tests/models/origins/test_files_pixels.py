"""The input of an added model: a model that returns its input shows the normalised pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper
from PIL import Image

from featurepress.errors import SettingError
from featurepress.models.card import KERAS_MODES
from featurepress.models.store import home
from tests.models import made
from tests.models.made import Array, features, ready

pytestmark = pytest.mark.usefixtures("own_home")

SIDE = 6
TORCH_MEAN, TORCH_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def seen(tmp_path: Path, levels: list[Array], **choices: Any) -> Array:
    """Return the input that the model gets for each image: (N, SIDE, SIDE, 3)."""
    card = ready(made.identity(tmp_path / "same.onnx", SIDE), **choices)
    assert card.grid == (SIDE, SIDE, 3)
    return features(card, levels, "flatten").reshape(len(levels), SIDE, SIDE, 3)


def by_pillow(pixels: Array, width: int = SIDE, height: int = SIDE, how: int = Image.Resampling.BILINEAR) -> Array:
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling(how))).astype(np.float64)


def exact() -> Array:
    """Return images of the model's size as one array."""
    return np.stack(made.pictures(3, SIDE, SIDE)).astype(np.float64)


# -- mean, scale and the order of the channels ---------------------------------------------------------------

NORMALISED: dict[str, tuple[dict[str, Any], Any]] = {
    "nothing said": ({}, lambda x: x),
    "raw": ({"mode": "raw"}, lambda x: x),
    "tf": ({"mode": "tf"}, lambda x: x / 127.5 - 1),
    "torch": ({"mode": "torch"}, lambda x: (x / 255 - TORCH_MEAN) / TORCH_STD),
    "caffe": ({"mode": "caffe"}, lambda x: x[..., ::-1] - (103.939, 116.779, 123.68)),
    "caffe in RGB": (
        {"mode": "caffe", "channel_order": "RGB"},
        lambda x: x - (103.939, 116.779, 123.68),
    ),
    "BGR": ({"channel_order": "BGR"}, lambda x: x[..., ::-1]),
    "three each": ({"mean": TORCH_MEAN, "scale": TORCH_STD}, lambda x: (x / 255 - TORCH_MEAN) / TORCH_STD),
    "one each": ({"mean": (0.5,), "scale": (0.25,)}, lambda x: (x / 255 - 0.5) / 0.25),
    "to one": ({"mean": (0.0,), "scale": (1.0,)}, lambda x: x / 255),
    "three each in BGR": (
        {"mean": TORCH_MEAN, "scale": TORCH_STD, "channel_order": "BGR"},
        lambda x: (x[..., ::-1] / 255 - TORCH_MEAN) / TORCH_STD,
    ),
}


@pytest.mark.parametrize("case", NORMALISED)
def test_pixels_are_normalised_as_requested(tmp_path: Path, case: str) -> None:
    choices, expected = NORMALISED[case]
    levels = made.pictures(3, SIDE, SIDE)
    np.testing.assert_allclose(seen(tmp_path, levels, **choices), expected(exact()), rtol=1e-5, atol=2e-5)


def test_every_mode_has_a_case() -> None:
    assert set(KERAS_MODES) <= set(NORMALISED)


@pytest.mark.parametrize(
    ("choices", "said"), [({}, False), ({"mode": "raw"}, True), ({"mean": (0.5,), "scale": (0.5,)}, True)]
)
def test_an_unknown_normalisation_is_noted(tmp_path: Path, choices: dict[str, Any], said: bool) -> None:
    notes = ready(made.identity(tmp_path / "same.onnx"), **choices).notes
    assert [note.startswith("Its normalisation is unknown") for note in notes] == ([] if said else [True])


# -- resizing and cutting ------------------------------------------------------------------------------------


def test_images_for_onnx_files_are_resized_like_pillow(tmp_path: Path) -> None:
    levels = made.pictures(2, 20, 14)
    found = seen(tmp_path, levels)
    assert np.array_equal(found, np.stack([by_pillow(one) for one in levels]))
    assert np.array_equal(found, found.round())


@pytest.mark.parametrize("name", ["nearest", "box", "hamming", "bicubic", "lanczos"])
def test_pillows_interpolations_differ(tmp_path: Path, name: str) -> None:
    (levels,) = made.pictures(1, 20, 14)
    how = Image.Resampling[name.upper()]
    assert np.array_equal(seen(tmp_path, [levels], interpolation=name)[0], by_pillow(levels, how=how))


@pytest.mark.parametrize(("height", "width"), [(20, 14), (14, 21), (9, 9), (6, 40)])
@pytest.mark.parametrize("edge", [None, 9])
def test_the_middle_is_cropped(tmp_path: Path, height: int, width: int, edge: int | None) -> None:
    (levels,) = made.pictures(1, height, width)
    short = edge or SIDE
    long = int(short * max(height, width) / min(height, width))
    tall, wide = (short, long) if height <= width else (long, short)
    top, left = (tall - SIDE) // 2, (wide - SIDE) // 2
    expected = by_pillow(levels, wide, tall)[top : top + SIDE, left : left + SIDE]
    assert np.array_equal(seen(tmp_path, [levels], resize="crop", shortest_edge=edge)[0], expected)


def linear_by_points(pixels: Array) -> Array:
    """Interpolate between pixel centres without antialias, as TensorFlow does by default."""
    out = pixels.astype(np.float64)
    for axis in (0, 1):
        of = out.shape[axis]
        at = (np.arange(SIDE) + 0.5) * of / SIDE - 0.5
        low = np.floor(at).astype(int)
        share = (at - low).reshape([-1 if i == axis else 1 for i in range(3)])
        first, second = (np.take(out, np.clip(low + step, 0, of - 1), axis) for step in (0, 1))
        out = first * (1 - share) + second * share
    return out


def test_images_are_resized_like_tensorflow_if_requested(tmp_path: Path) -> None:
    levels = made.pictures(2, 20, 14)
    expected = np.stack([linear_by_points(one) for one in levels])
    found = seen(tmp_path, levels, like="tensorflow")
    np.testing.assert_allclose(found, expected, atol=1e-3)
    assert np.abs(found - found.round()).max() > 0.1  # not rounded to whole levels
    scaled = seen(tmp_path, levels, like="tensorflow", mode="tf")
    np.testing.assert_allclose(scaled, expected / 127.5 - 1, atol=1e-5)


def test_antialias_changes_the_resizing_of_tensorflow(tmp_path: Path) -> None:
    levels = made.pictures(2, 20, 14)
    smooth = seen(tmp_path, levels, like="tensorflow", antialias=True)
    # The same kernel as Pillow's, but for its rounding.
    np.testing.assert_allclose(smooth, np.stack([by_pillow(one) for one in levels]), atol=1.1)
    assert np.abs(smooth - seen(tmp_path, levels, like="tensorflow")).max() > 5


# -- models that take bytes ----------------------------------------------------------------------------------


def bytes_in(path: Path) -> Path:
    """Write a model that returns its input of bytes as floats."""
    node = helper.make_node("Cast", ["pixels"], ["levels"], to=TensorProto.FLOAT)
    shape: list[int | str] = ["N", SIDE, SIDE, 3]
    return made.save(path, [node], [], shape, ("levels", shape), TensorProto.UINT8)


@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_a_model_of_bytes_gets_bytes(tmp_path: Path, order: str) -> None:
    card = ready(bytes_in(tmp_path / "bytes.onnx"), channel_order=order)
    levels = made.pictures(2, 20, 14)
    expected = np.stack([by_pillow(one) for one in levels])[..., :: 1 if order == "RGB" else -1]
    assert np.array_equal(features(card, levels, "flatten").reshape(expected.shape), expected)
    assert card.notes == ()  # it needs no normalisation


# -- what contradicts itself ---------------------------------------------------------------------------------

CONTRADICTIONS: list[tuple[dict[str, Any], str]] = [
    ({"mode": "pytorch"}, "must be 'tf', 'caffe', 'torch' or 'raw'"),
    ({"mode": "tf", "mean": (0.5,), "scale": (0.5,)}, "not both"),
    ({"mean": (0.5,)}, "together"),
    ({"scale": (0.5,)}, "together"),
    ({"mean": (127.5,), "scale": (127.5,)}, "divide by 255"),
    ({"mean": (0.5, 0.5), "scale": (0.5,)}, "one number, or three"),
    ({"mean": (0.5,), "scale": (0.0,)}, "none of them 0"),
    ({"like": "torch"}, "must be 'pillow' or 'tensorflow'"),
    ({"resize": "squeeze"}, "resize"),
    ({"interpolation": "cubic"}, "interpolation"),
    ({"like": "tensorflow", "interpolation": "lanczos"}, "interpolation"),
    ({"antialias": False}, "--no-antialias"),
    ({"resize": "crop", "shortest_edge": 5}, "shortest_edge"),
    ({"channel_order": "GBR"}, "channel_order"),
]


@pytest.mark.parametrize(("choices", "part"), CONTRADICTIONS)
def test_contradictory_options_are_refused(tmp_path: Path, choices: dict[str, Any], part: str) -> None:
    with pytest.raises(SettingError) as caught:
        ready(made.identity(tmp_path / "same.onnx"), **choices)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list((home() / "models").glob("*")) == []


@pytest.mark.parametrize(
    "choices", [{"like": "tensorflow"}, {"mode": "torch"}, {"mode": "caffe"}, {"mean": (0.5,), "scale": (0.5,)}]
)
def test_a_model_of_bytes_allows_no_normalisation(tmp_path: Path, choices: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match="The model's input is bytes"):
        ready(bytes_in(tmp_path / "bytes.onnx"), **choices)
    assert list((home() / "models").glob("*")) == []
