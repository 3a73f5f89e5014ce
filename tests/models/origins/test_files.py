"""Model files of the user: layouts, batches, outputs and names, compared with NumPy."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from featurepress.errors import ModelError, SettingError
from featurepress.models.catalog import find_card
from featurepress.models.origins import files
from featurepress.models.store import home, names
from featurepress.models.verbs import add
from featurepress.settings import Choices
from tests.models import made
from tests.models.made import BIAS, CHANNELS, HEAD, HEIGHT, KERNEL, WIDTH, Array, features, grid_of, ready

pytestmark = pytest.mark.usefixtures("own_home")

SIDES = (HEIGHT // 2, WIDTH // 2)


def assert_near(found: Array, expected: Array) -> None:
    assert found.dtype == np.float32
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


# -- layouts, types and poolings -----------------------------------------------------------------------------

MAKERS: dict[str, Callable[[Path], Path]] = {
    "NCHW": made.channels_first,
    "NCHW, one at a time": lambda path: made.channels_first(path, batch=1),
    "NHWC": made.channels_last,
    "NHWC, one at a time": lambda path: made.channels_last(path, batch=1),
    "NHWC, bytes": lambda path: made.channels_last(path, kind=TensorProto.UINT8),
    "NHWC, half precision": lambda path: made.channels_last(path, kind=TensorProto.FLOAT16),
}


@pytest.mark.parametrize("maker", MAKERS)
def test_a_grid_is_pooled_in_any_way_whatever_its_layout(tmp_path: Path, maker: str) -> None:
    card = ready(MAKERS[maker](tmp_path / "net.onnx"))
    levels = made.pictures()
    grid = grid_of(levels)
    assert card.grid == (*SIDES, CHANNELS)
    assert card.batch is None
    assert (card.pooled, card.output, card.name) == ("", "grid", "net")
    assert (card.preprocess.height, card.preprocess.width) == (HEIGHT, WIDTH)
    assert card.origin["layout"] == maker[:4]
    assert_near(features(card, levels, "avg"), grid.mean((1, 2)))
    assert_near(features(card, levels, "max"), grid.max((1, 2)))
    assert_near(features(card, levels, "flatten"), grid.reshape(len(levels), -1))


def test_the_weights_are_counted(tmp_path: Path) -> None:
    assert ready(made.channels_first(tmp_path / "net.onnx")).n_parameters == KERNEL.size + BIAS.size


def test_a_vector_is_not_pooled(tmp_path: Path) -> None:
    card = ready(made.with_head(tmp_path / "net.onnx"))
    levels = made.pictures()
    assert (card.grid, card.pooled) == ((1, 1, 7), "vector")
    assert_near(features(card, levels), grid_of(levels).mean((1, 2)) @ HEAD)
    with pytest.raises(ModelError) as caught:
        card.backbone("flatten")
    assert str(caught.value).startswith("The output 'vector' of net is a vector of 7 numbers")
    assert "\n" not in str(caught.value)


def tokens(path: Path, batch: int | str = "N") -> Path:
    """Write a model that returns (N, tokens, C), as transformers do."""
    count = SIDES[0] * SIDES[1]
    tail = [
        helper.make_node("Reshape", ["grid", "rows"], ["columns"]),
        helper.make_node("Transpose", ["columns"], ["tokens"], perm=[0, 2, 1]),
    ]
    rows = made.constant("rows", [0, CHANNELS, count], np.int64)
    return made.channels_first(path, batch=batch, tail=tail, constants=[rows], output=("tokens", [batch, count, 5]))


def test_tokens_are_a_grid_of_one_column(tmp_path: Path) -> None:
    card = ready(tokens(tmp_path / "net.onnx"))
    levels = made.pictures()
    grid = grid_of(levels)
    assert card.grid == (SIDES[0] * SIDES[1], 1, CHANNELS)
    assert_near(features(card, levels, "avg"), grid.mean((1, 2)))
    assert_near(features(card, levels, "max"), grid.max((1, 2)))
    assert_near(features(card, levels, "flatten"), grid.reshape(len(levels), -1))


# -- one output among many -----------------------------------------------------------------------------------


def test_an_inner_tensor_is_chosen_by_its_name(tmp_path: Path) -> None:
    path = made.with_head(tmp_path / "net.onnx")
    levels = made.pictures()
    card = ready(path, output="grid")
    assert (card.output, card.grid, card.pooled) == ("grid", (*SIDES, CHANNELS), "")
    assert_near(features(card, levels, "flatten"), grid_of(levels).reshape(len(levels), -1))
    assert card.file != ready(path).file
    pooled = ready(path, output="mean")
    assert pooled.grid == (1, 1, CHANNELS)
    assert_near(features(pooled, levels), grid_of(levels).mean((1, 2)))


def test_an_unknown_output_lists_close_matches(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        ready(made.with_head(tmp_path / "net.onnx"), output="vectro")
    assert "has no tensor 'vectro'; did you mean 'vector'" in str(caught.value)
    assert "--outputs lists them" in str(caught.value)


def test_the_outputs_are_listed_from_first_to_last(tmp_path: Path) -> None:
    listed = files.outputs(str(made.with_head(tmp_path / "net.onnx")))
    shapes = {one["name"]: one["shape"] for one in listed}
    assert shapes["grid"] == [-1, CHANNELS, *SIDES]
    assert shapes["mean"] == [-1, CHANNELS, 1, 1]
    assert shapes["flat"] == [-1, CHANNELS]
    assert shapes["vector"] == [-1, 7]
    assert [name for name in shapes if name in ("grid", "mean", "vector")] == ["grid", "mean", "vector"]
    assert all(shape[0] == -1 for shape in shapes.values())  # no weights, nor what is made of them
    assert all(one["made_by"] for one in listed)


def test_every_listed_output_can_be_used(tmp_path: Path) -> None:
    path = made.with_head(tmp_path / "net.onnx")
    for one in files.outputs(str(path)):
        assert ready(path, output=one["name"]).output == one["name"]


# -- the number of pictures at a time ------------------------------------------------------------------------


def excited(path: Path, batch: int) -> Path:
    """Write a squeeze-and-excitation block whose reshape has the batch in its constant."""
    tail = [
        helper.make_node("ReduceMean", ["grid"], ["mean"], axes=[2, 3], keepdims=0),
        helper.make_node("Sigmoid", ["mean"], ["gate"]),
        helper.make_node("Reshape", ["gate", "shape"], ["wide"]),
        helper.make_node("Mul", ["grid", "wide"], ["excited"]),
    ]
    shape = made.constant("shape", [batch, CHANNELS, 1, 1], np.int64)
    output = ("excited", [batch, CHANNELS, *SIDES])
    return made.channels_first(path, batch=batch, tail=tail, constants=[shape], output=output)


@pytest.mark.parametrize("batch", [1, 4])
def test_a_batch_written_into_a_reshape_is_freed(tmp_path: Path, batch: int) -> None:
    card = ready(excited(tmp_path / "net.onnx", batch))
    levels = made.pictures()
    grid = grid_of(levels)
    gate = 1 / (1 + np.exp(-grid.mean((1, 2), keepdims=True)))
    assert card.batch is None
    assert_near(features(card, levels, "flatten"), (grid * gate).reshape(len(levels), -1))


def rolled_up(path: Path, batch: int) -> Path:
    """Write a model that joins batch and channels in one axis of fixed length."""
    count = SIDES[0] * SIDES[1]
    tail = [
        helper.make_node("Reshape", ["grid", "rolled"], ["rows"]),
        helper.make_node("Reshape", ["rows", "unrolled"], ["again"]),
    ]
    shapes = [
        made.constant("rolled", [batch * CHANNELS, count], np.int64),
        made.constant("unrolled", [batch, CHANNELS, *SIDES], np.int64),
    ]
    output = ("again", [batch, CHANNELS, *SIDES])
    return made.channels_first(path, batch=batch, tail=tail, constants=shapes, output=output)


@pytest.mark.parametrize("batch", [1, 4])
def test_a_batch_that_cannot_be_freed_is_kept(tmp_path: Path, batch: int) -> None:
    card = ready(rolled_up(tmp_path / "net.onnx", batch))
    levels = made.pictures()
    assert card.batch == batch
    assert card.backbone("avg").options["batch"] == batch
    assert_near(features(card, levels, "flatten"), grid_of(levels).reshape(len(levels), -1))
    assert_near(features(card, levels, "avg"), grid_of(levels).mean((1, 2)))


def test_images_of_a_batch_do_not_influence_each_other(tmp_path: Path) -> None:
    # The reader would take any number, but each picture's features would then hang on the others.
    tail = [
        helper.make_node("ReduceMean", ["grid"], ["others"], axes=[0], keepdims=1),
        helper.make_node("Add", ["grid", "others"], ["mixed"]),
    ]
    path = made.channels_first(tmp_path / "net.onnx", batch=1, tail=tail, output=("mixed", [1, CHANNELS, *SIDES]))
    card = ready(path)
    levels = made.pictures()
    assert card.batch == 1
    assert_near(features(card, levels, "flatten"), 2 * grid_of(levels).reshape(len(levels), -1))


def test_a_model_with_one_row_of_output_gets_one_image_at_a_time(tmp_path: Path) -> None:
    tail = [helper.make_node("ReduceMax", ["grid"], ["one"], axes=[0], keepdims=1)]
    card = ready(made.channels_first(tmp_path / "net.onnx", tail=tail, output=("one", [1, CHANNELS, *SIDES])))
    levels = made.pictures()
    assert card.batch == 1
    assert_near(features(card, levels), grid_of(levels).mean((1, 2)))


def test_the_fingerprint_does_not_depend_on_the_batch(tmp_path: Path) -> None:
    spec = ready(rolled_up(tmp_path / "net.onnx", 1)).backbone("avg")
    assert "batch" not in json.dumps(spec.feature_space)


# -- sizes and layouts that the file leaves open -------------------------------------------------------------


def test_a_model_of_open_size_needs_a_size(tmp_path: Path) -> None:
    path = made.channels_first(tmp_path / "net.onnx", sides=("H", "W"))
    with pytest.raises(ModelError, match=r"any size .*--size"):
        find_card(str(path))
    card = find_card(str(path), size=10)
    levels = made.pictures(height=10, width=10)
    assert card.grid == (5, 5, CHANNELS)
    assert_near(features(card, levels, "flatten"), grid_of(levels).reshape(len(levels), -1))
    assert card.file != find_card(str(path), size=12).file


def test_the_size_of_a_model_can_be_changed(tmp_path: Path) -> None:
    card = find_card(str(made.channels_first(tmp_path / "net.onnx")), size=6)
    levels = made.pictures(height=6, width=6)
    assert card.grid == (3, 3, CHANNELS)
    assert_near(features(card, levels, "flatten"), grid_of(levels).reshape(len(levels), -1))


def any_layout(path: Path, shape: list[int | str]) -> Path:
    """Write a model with weights for its second axis, which may be colours or rows by its shape."""
    node = helper.make_node("Mul", ["pixels", "weights"], ["weighed"])
    weights = made.constant("weights", [[[1]], [[2]], [[3]]])
    return made.save(path, [node], [weights], shape, ("weighed", shape))


@pytest.mark.parametrize("shape", [["N", 3, 3, 3], ["N", "a", "b", "c"]])
def test_a_model_of_ambiguous_layout_needs_a_layout(tmp_path: Path, shape: list[int | str]) -> None:
    path = any_layout(tmp_path / "net.onnx", shape)
    with pytest.raises(ModelError, match=r"layout is ambiguous.*--layout NHWC or --layout NCHW"):
        ready(path, size=3)
    levels = made.pictures(3, 3, 3)
    weights = np.array([1.0, 2.0, 3.0])
    for layout, each in (("NHWC", weights[:, None, None]), ("NCHW", weights)):
        card = ready(path, size=3, layout=layout)
        assert card.origin["layout"] == layout
        assert_near(features(card, levels, "flatten"), (np.stack(levels) * each).reshape(3, -1))


def test_an_unknown_layout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="must be 'NHWC' or 'NCHW'"):
        ready(made.channels_first(tmp_path / "net.onnx"), layout="CHWN")


# -- names, and what is made only once -----------------------------------------------------------------------


def test_an_added_model_is_found_by_its_name(tmp_path: Path) -> None:
    path = made.channels_first(tmp_path / "net.onnx")
    card = add(str(path), "mine-1.0", mode="torch")
    path.unlink()  # the name needs the file no more
    assert find_card("mine-1.0") == card
    assert card.name == "mine-1.0"
    assert card.preprocess.mean == (123.675, 116.28, 103.53)
    assert names() == ["mine-1.0"]
    with pytest.raises(ModelError, match="does not allow --size"):
        find_card("mine-1.0", size=9)


@pytest.mark.parametrize("name", ["embedded", "embedded-v1", "resnet50"])
def test_a_reserved_name_is_refused(tmp_path: Path, name: str) -> None:
    path = made.channels_first(tmp_path / "net.onnx")
    with pytest.raises(ModelError, match=f"The name '{name}' belongs to a model of the list"):
        add(str(path), name)
    assert names() == []


@pytest.mark.parametrize("name", ["", "../up", "a b", ".hidden", "a/b", "hf:a", "ü"])
def test_an_invalid_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelError, match="name must consist of letters, digits"):
        add(str(made.channels_first(tmp_path / "net.onnx")), name)
    assert names() == []


def test_a_name_can_be_reused(tmp_path: Path) -> None:
    add(str(made.channels_first(tmp_path / "one.onnx")), "mine")
    later = add(str(made.with_head(tmp_path / "two.onnx")), "mine")
    assert find_card("mine") == later
    assert later.output == "vector"


def models() -> dict[str, int]:
    """Return the stored models and their times."""
    return {one.parent.name: one.stat().st_mtime_ns for one in (home() / "models").glob("*/model.xml")}


def test_the_same_content_is_converted_once(tmp_path: Path) -> None:
    path = made.channels_first(tmp_path / "net.onnx")
    first = ready(path)
    before = models()
    told: list[str] = []
    copy = tmp_path / "elsewhere" / "net.onnx"
    copy.parent.mkdir()
    copy.write_bytes(path.read_bytes())
    again = files.load_card(str(copy), Choices(), on_progress=lambda progress: told.append(progress.doing))
    assert again == first
    assert told == []
    assert models() == before
    assert list(before) == [first.file]


def test_another_content_is_another_feature_space(tmp_path: Path) -> None:
    path = made.channels_first(tmp_path / "net.onnx")
    levels = made.pictures()
    first = ready(path)
    made.channels_first(path, kernel=2 * KERNEL)
    second = ready(path)
    assert first.backbone("avg").fingerprint != second.backbone("avg").fingerprint
    assert first.file != second.file
    assert_near(features(second, levels), grid_of(levels, 2 * KERNEL).mean((1, 2)))
    assert_near(features(first, levels), grid_of(levels).mean((1, 2)))


@pytest.mark.parametrize(
    "choices", [{"mode": "tf"}, {"channel_order": "BGR"}, {"resize": "crop"}, {"like": "tensorflow"}]
)
def test_another_preprocessing_is_another_feature_space(tmp_path: Path, choices: dict[str, Any]) -> None:
    path = made.channels_first(tmp_path / "net.onnx")
    plain, other = ready(path), ready(path, **choices)
    assert plain.file != other.file
    assert plain.backbone("avg").fingerprint != other.backbone("avg").fingerprint


def test_the_fingerprint_does_not_depend_on_the_file_name(tmp_path: Path) -> None:
    path = made.channels_first(tmp_path / "net.onnx")
    other = tmp_path / "other.onnx"
    other.write_bytes(path.read_bytes())
    assert ready(path).backbone("max").fingerprint == ready(other).backbone("max").fingerprint


def test_a_changed_stored_model_is_refused(tmp_path: Path) -> None:
    # Its own weights, since a checked model is not hashed again by the same process.
    card = ready(made.channels_first(tmp_path / "net.onnx", kernel=3 * KERNEL))
    (home() / "models" / card.file / "model.bin").write_bytes(b"\0" * 260)
    with pytest.raises(ModelError, match=r"has the hash .*Remove the folder"):
        features(card, made.pictures(1))


def test_the_first_of_several_outputs_is_used(tmp_path: Path) -> None:
    path = made.with_head(tmp_path / "net.onnx")
    model = onnx.load(str(path))
    model.graph.output.append(helper.make_tensor_value_info("grid", TensorProto.FLOAT, ["N", CHANNELS, *SIDES]))
    onnx.save(model, str(path))
    assert ready(path).output == "vector"
