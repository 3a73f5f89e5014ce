"""ONNX models with weights in other files, and damaged ones."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import hypothesis
import numpy as np
import onnx
import pytest
from hypothesis import strategies as st
from onnx import TensorProto, helper

from featurepress.errors import ModelError
from featurepress.models.conversion.guard import external_files
from featurepress.models.origins import files
from featurepress.models.store import home
from tests.models import made
from tests.models.made import KERNEL, features, grid_of, ready, refused

pytestmark = pytest.mark.usefixtures("own_home")

CLEAN = KERNEL.transpose(3, 2, 0, 1).tobytes()


def moved_out(path: Path, location: str, data: Path | None = None) -> Path:
    """Write the convolution with its kernel in another file, at `data`."""
    model = onnx.load(str(made.channels_first(path)))
    (kernel,) = (one for one in model.graph.initializer if one.name == "kernel")
    kernel.ClearField("raw_data")
    point_to(kernel, location)
    path.write_bytes(model.SerializeToString())
    if data is not None:
        data.parent.mkdir(parents=True, exist_ok=True)
        data.write_bytes(CLEAN)
    return path


def point_to(tensor: TensorProto, location: str) -> None:
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", str(len(CLEAN)))):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value


# -- other files ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("location", ["net.onnx_data", "weights/of net.bin"])
def test_weights_beside_the_model_are_read(tmp_path: Path, location: str) -> None:
    path = moved_out(tmp_path / "net.onnx", location, tmp_path / location)
    levels = made.pictures()
    assert external_files(path) == [tmp_path / location]
    np.testing.assert_allclose(features(ready(path), levels), grid_of(levels).mean((1, 2)), rtol=1e-4)


def test_weights_beside_the_model_are_part_of_its_content(tmp_path: Path) -> None:
    data = tmp_path / "net.onnx_data"
    path = moved_out(tmp_path / "net.onnx", data.name, data)
    levels = made.pictures()
    first = ready(path)
    data.write_bytes((2 * KERNEL).transpose(3, 2, 0, 1).tobytes())
    second = ready(path)
    assert first.weights_sha256 != second.weights_sha256
    assert first.file != second.file
    np.testing.assert_allclose(features(first, levels), grid_of(levels).mean((1, 2)), rtol=1e-4)
    np.testing.assert_allclose(features(second, levels), grid_of(levels, 2 * KERNEL).mean((1, 2)), rtol=1e-4)


def test_the_content_does_not_hang_on_where_the_model_lies(tmp_path: Path) -> None:
    hashes = set()
    for folder in (tmp_path / "one", tmp_path / "two"):
        folder.mkdir()
        path = moved_out(folder / "net.onnx", "net.data", folder / "net.data")
        hashes.add(files.content_hash(path, "onnx"))
    assert len(hashes) == 1


def test_links_of_a_cache_are_followed(tmp_path: Path) -> None:
    # As huggingface_hub keeps files: named by their content, with links beside each other.
    blobs, shown = tmp_path / "blobs", tmp_path / "snapshots" / "main"
    shown.mkdir(parents=True)
    moved_out(tmp_path / "net.onnx", "net.onnx_data", blobs / "abc")
    (tmp_path / "net.onnx").rename(blobs / "def")
    (shown / "net.onnx").symlink_to(os.path.relpath(blobs / "def", shown))
    (shown / "net.onnx_data").symlink_to(os.path.relpath(blobs / "abc", shown))
    levels = made.pictures()
    assert [one["name"] for one in files.outputs(str(shown / "net.onnx"))][-1] == "grid"
    card = ready(shown / "net.onnx")
    np.testing.assert_allclose(features(card, levels), grid_of(levels).mean((1, 2)), rtol=1e-4)
    assert (blobs / "abc").read_bytes() == CLEAN
    assert [
        one.name for one in (home() / "models").glob("*/*") if one.suffix not in (".xml", ".bin", ".json")
    ] == []


@pytest.mark.parametrize("location", ["../secret.bin", "inner/../../secret.bin", "./../secret.bin"])
def test_weights_outside_the_folder_are_refused(tmp_path: Path, location: str) -> None:
    (tmp_path / "models" / "inner").mkdir(parents=True)
    path = moved_out(tmp_path / "models" / "net.onnx", location, tmp_path / "secret.bin")
    assert f"'{location}', outside its folder" in refused(path)


def test_weights_at_an_absolute_place_are_refused(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    path = moved_out(tmp_path / "models" / "net.onnx", str(tmp_path / "secret"), tmp_path / "secret")
    assert "outside its folder: refused" in refused(path)


@pytest.mark.parametrize(
    "location", ["none.bin", "", ".", "a" * 300, "*/_ORT_MEM_ADDR_/*", "a\nb", "a\0b", "..\\up"]
)
def test_weights_that_are_not_there_are_named(tmp_path: Path, location: str) -> None:
    path = moved_out(tmp_path / "net.onnx", location)
    assert f"{location!r}, which is not in its folder" in refused(path)


def test_weights_too_short_are_refused(tmp_path: Path) -> None:
    path = moved_out(tmp_path / "net.onnx", "net.data", tmp_path / "net.data")
    (tmp_path / "net.data").write_bytes(CLEAN[:100])
    assert "cannot be read" in refused(path)


# -- wherever they are said ----------------------------------------------------------------------------------


def doubling(constant: onnx.NodeProto) -> onnx.GraphProto:
    """Return a graph that adds the output of a node."""
    shape: list[int | str | None] = ["N", 3, 8, 8]
    return helper.make_graph(
        [constant, helper.make_node("Add", ["pixels", "weights"], ["sum"])],
        "made",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("sum", TensorProto.FLOAT, shape)],
    )


def test_weights_of_a_constant_node_are_found(tmp_path: Path) -> None:
    node = helper.make_node("Constant", [], ["weights"], value=made.constant("weights", [1.0]))
    point_to(node.attribute[0].t, "../out")
    path = tmp_path / "net.onnx"
    path.write_bytes(helper.make_model(doubling(node)).SerializeToString())
    assert "'../out', outside its folder" in refused(path)


@pytest.mark.parametrize("in_list", [False, True])
def test_weights_of_an_inner_graph_are_found(tmp_path: Path, in_list: bool) -> None:
    inner = helper.make_graph([], "branch", [], [helper.make_tensor_value_info("weights", TensorProto.FLOAT, [1])])
    inner.initializer.append(made.constant("weights", [1.0]))
    point_to(inner.initializer[0], "../out")
    node = helper.make_node("If", ["condition"], ["weights"])
    node.attribute.append(helper.make_attribute("then_branch", [inner] if in_list else inner))
    path = tmp_path / "net.onnx"
    path.write_bytes(helper.make_model(doubling(node)).SerializeToString())
    assert "'../out', outside its folder" in refused(path)


def field(number: int, content: bytes, tag: bytes | None = None) -> bytes:
    """Return a field of a protobuf message."""
    return (tag or varint(number << 3 | 2)) + varint(len(content)) + content


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


LOCATION = field(1, b"location") + field(2, b"../out")
DISGUISES = {
    "plain": field(13, LOCATION),
    "value first": field(13, field(2, b"../out") + field(1, b"location")),
    "a key before the key": field(13, field(1, b"offset") + LOCATION),
    "a good place before": field(13, field(1, b"location") + field(2, b"net.onnx")) + field(13, LOCATION),
    "a good value before": field(13, field(2, b"net.onnx") + LOCATION),
    "a longer tag": field(13, LOCATION, tag=b"\xea\x80\x00"),
    "a tag whose upper half other readers drop": field(13, LOCATION, tag=b"\xea\x80\x80\x80\x10"),
}


@pytest.mark.parametrize("case", DISGUISES)
def test_a_place_in_disguise_is_found(tmp_path: Path, case: str) -> None:
    tensor = b"\x08\x08\x10\x01" + field(8, b"weights") + DISGUISES[case] + b"\x70\x01"
    path = tmp_path / "net.onnx"
    path.write_bytes(field(7, field(5, tensor)))
    with pytest.raises(ModelError, match="outside its folder" if "upper" not in case else "is not an ONNX model"):
        external_files(path)


# -- damage --------------------------------------------------------------------------------------------------


def test_a_model_cut_anywhere_is_refused_or_has_no_other_files(tmp_path: Path) -> None:
    whole = made.with_head(tmp_path / "net.onnx").read_bytes()
    path = tmp_path / "cut.onnx"
    for length in range(0, len(whole), 3):
        path.write_bytes(whole[:length])
        with contextlib.suppress(ModelError):
            assert external_files(path) == []


@hypothesis.given(st.binary(max_size=200))
@hypothesis.settings(deadline=None, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
def test_any_bytes_are_refused_or_have_no_other_files(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "any.onnx"
    path.write_bytes(content)
    with contextlib.suppress(ModelError):
        external_files(path)


@hypothesis.given(st.data())
@hypothesis.settings(deadline=None, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
def test_a_damaged_model_is_never_worse_than_refused(tmp_path: Path, data: st.DataObject) -> None:
    path = moved_out(tmp_path / "net.onnx", "net.data", tmp_path / "net.data")
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    with contextlib.suppress(ModelError):
        assert all(one.parent == tmp_path or tmp_path in one.parents for one in external_files(path))


def test_damaged_models_never_take_the_command_with_them(tmp_path: Path) -> None:
    whole = made.with_head(tmp_path / "net.onnx").read_bytes()
    rng = np.random.default_rng(4)
    path = tmp_path / "damaged.onnx"
    for _ in range(6):
        content = bytearray(whole)
        for at in rng.integers(0, len(whole), 8):
            content[at] = int(rng.integers(0, 256))
        path.write_bytes(content)
        try:
            assert ready(path).grid  # what was hit may be a name, or a weight
        except ModelError as error:
            assert str(path) in str(error) or str(error).startswith("The ")
            assert "\n" not in str(error)


def test_graphs_without_end_are_refused(tmp_path: Path) -> None:
    graph = b""
    for _ in range(3000):  # graph in attribute in node in graph …
        for number in (6, 5, 1):
            graph = field(number, graph)
    path = tmp_path / "deep.onnx"
    path.write_bytes(field(7, graph))
    with pytest.raises(ModelError, match="is not an ONNX model"):
        external_files(path)
