"""Model files with code, links or archive bombs are refused, and nothing of them is executed."""

from __future__ import annotations

import base64
import io
import json
import marshal
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from featurepress.errors import ModelError
from featurepress.models.catalog import find_card
from featurepress.models.conversion.guard import check_keras, check_weights
from tests.models import made
from tests.models.made import refused

pytestmark = pytest.mark.usefixtures("own_home")


# -- archives made by hand -----------------------------------------------------------------------------------


def weights(**datasets: Any) -> bytes:
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for name, values in datasets.items():
            file[name] = values
    return buffer.getvalue()


def layer(kind: str, name: str, module: str | None = "keras.layers", **config: Any) -> dict[str, Any]:
    return {
        "module": module,
        "class_name": kind,
        "config": {"name": name, **config},
        "registered_name": None,
        "name": name,
    }


def config_of(
    *layers: dict[str, Any], kind: str = "Sequential", module: str = "keras", **more: Any
) -> dict[str, Any]:
    first = layer("InputLayer", "pixels", batch_shape=[None, 8, 8, 3], dtype="float32")
    inner = {"name": "net", "layers": [first, *layers]}
    return {"module": module, "class_name": kind, "config": inner, "registered_name": None, **more}


def archive(path: Path, config: Any, **members: bytes) -> Path:
    """Write a .keras file; the names of further or replaced members have __ for a dot."""
    content = {
        "metadata.json": b'{"keras_version": "3.13.0", "date_saved": "2026-01-01"}',
        "config.json": json.dumps(config).encode(),
        "model.weights.h5": weights(),
        **{name.replace("__", "."): data for name, data in members.items()},
    }
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in content.items():
            file.writestr(name, data)
    return path


def write_file(target: Path) -> str:
    """Return the code of a Lambda layer, which would write a file."""
    code = compile(f"lambda x: [open({str(target)!r}, 'w').close(), x][1]", "layer", "eval").co_consts[0]
    return base64.b64encode(marshal.dumps(code)).decode()


def test_an_archive_made_by_hand_is_read(tmp_path: Path) -> None:
    # Or else the others could be refused for being made so.
    path = archive(tmp_path / "net.keras", config_of(layer("GlobalAveragePooling2D", "mean")))
    assert check_keras(path)["class_name"] == "Sequential"
    levels = made.pictures(3, 8, 8)
    found = made.features(find_card(str(path)), levels)
    np.testing.assert_allclose(found, np.stack(levels).mean((1, 2)), rtol=1e-5)


# -- code ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["a layer", "an inner model", "an argument"])
def test_a_lambda_layer_is_refused_by_its_name_and_not_executed(tmp_path: Path, place: str) -> None:
    target = tmp_path / "written"
    function = {
        "class_name": "__lambda__",
        "config": {"code": write_file(target), "defaults": None, "closure": None},
    }
    evil = layer("Lambda", "doubled", function=function, output_shape=[8, 8, 3])
    if place == "an inner model":
        evil = config_of(evil)
    elif place == "an argument":
        evil = layer("Activation", "curve", activation=function)
    said = refused(archive(tmp_path / "net.keras", config_of(evil)))
    assert "refused, and not executed" in said
    assert "ambda layer, " in said
    assert place == "an argument" or "'doubled'" in said
    assert not target.exists()


def test_a_lambda_layer_of_keras_itself_is_refused(tmp_path: Path) -> None:
    made.run_program("make_keras.py", tmp_path, "lambda")
    said = refused(tmp_path / "lambda.keras")
    assert "has a Lambda layer, 'doubled'" in said


CARRIERS = ["Lambda", "TFSMLayer", "TorchModuleWrapper", "JaxLayer", "FlaxLayer"]


@pytest.mark.parametrize("kind", CARRIERS)
@pytest.mark.parametrize("module", ["keras.layers", "keras.src.layers", "builtins", "anything", None])
def test_a_layer_with_code_of_its_own_is_refused_from_any_module(
    tmp_path: Path, kind: str, module: str | None
) -> None:
    path = archive(tmp_path / "net.keras", config_of(layer(kind, "hidden", module, filepath="/etc")))
    with pytest.raises(ModelError, match=f"has a {kind} layer, 'hidden', which carries custom code"):
        check_keras(path)


@pytest.mark.parametrize("kind", ["StringLookup", "IntegerLookup", "TextVectorization"])
def test_a_layer_that_reads_files_is_refused(tmp_path: Path, kind: str) -> None:
    path = archive(tmp_path / "net.keras", config_of(layer(kind, "words", vocabulary="/etc/passwd")))
    assert f"has a {kind} layer, 'words', which reads other files: refused" in refused(path)


def call(module: str | None, name: str) -> dict[str, Any]:
    """Return the config of a function."""
    return {"module": module, "class_name": "function", "config": name, "registered_name": name}


FOREIGN: dict[str, dict[str, Any]] = {
    "a class of os": layer("system", "x", "os"),
    "a function of os": layer("Activation", "x", activation=call("os", "system")),
    "get_file": layer("Activation", "x", activation=call("keras.utils", "get_file")),
    "get_file, inside": layer("Activation", "x", activation=call("keras.src.utils.file_utils", "get_file")),
    "load_model": layer("Activation", "x", activation=call("keras.saving", "load_model")),
    "a dotted builtin": layer("Activation", "x", activation=call("builtins", "os.system")),
    "a dotted name": layer("Activation", "x", activation=call(None, "os:system")),
    "a module like keras": layer("Dense", "x", "kerasevil.layers", units=1),
    "a name like keras": layer("Dense", "x", "keras_hub.layers", units=1),
    "keras's tools": layer("Dense", "x", "keras.legacy", units=1),
    "an initializer": layer("Dense", "x", units=1, kernel_initializer=layer("run", "x", "subprocess")),
    "a type": {"class_name": "__typespec__", "module": "os", "config": [], "spec_name": "system"},
    "in a list of lists": layer("Activation", "x", arguments=[[{"deep": [layer("Popen", "x", "subprocess")]}]]),
    "in an inner model": config_of(layer("Popen", "x", "subprocess")),
    "in what an inner model was trained with": config_of(compile_config={"loss": call("os", "system")}),
    "in how it was built": config_of(build_config={"shape": layer("Popen", "x", "subprocess")}),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_what_is_not_keras_s_own_is_refused(tmp_path: Path, case: str) -> None:
    path = archive(tmp_path / "net.keras", config_of(FOREIGN[case]))
    with pytest.raises(ModelError, match=r"names '\w+' of the module '.*', .* refused") as caught:
        check_keras(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "module"),
    [("MyModel", "my_package"), ("Model", "keras"), ("Dense", "keras.layers"), (None, None), (3, "")],
)
def test_a_model_of_a_class_of_its_own_is_refused(tmp_path: Path, kind: Any, module: Any) -> None:
    said = refused(archive(tmp_path / "net.keras", config_of(kind=kind, module=module)))
    assert f"is of the class '{kind}', which is custom code" in said
    assert "export it to ONNX" in said


def test_a_known_class_of_another_module_is_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "net.keras", config_of(kind="Functional", module="my_package"))
    assert "names 'Functional' of the module 'my_package'" in refused(path)


def test_what_it_was_trained_with_does_not_matter(tmp_path: Path) -> None:
    trained = {"optimizer": layer("Mine", "x", "my_package"), "loss": "mse"}
    path = archive(tmp_path / "net.keras", config_of(layer("GlobalMaxPooling2D", "most"), compile_config=trained))
    levels = made.pictures(3, 8, 8)
    np.testing.assert_array_equal(made.features(find_card(str(path)), levels), np.stack(levels).max((1, 2)))


# -- archives that are not what they say ---------------------------------------------------------------------


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.target), "w"))


@pytest.mark.parametrize("name", ["model.pkl", "data/0", "config.json.bak", "model.weights.npz", "evil.py"])
def test_a_member_that_belongs_to_no_model_is_refused(tmp_path: Path, name: str) -> None:
    data = pickle.dumps(Evil(tmp_path / "written"))
    said = refused(archive(tmp_path / "net.keras", config_of(), **{name: data}))
    assert f"has '{name}', which does not belong to a .keras file" in said
    assert not (tmp_path / "written").exists()


@pytest.mark.parametrize(
    "name", ["../up", "assets/../../up", "/up", "assets/x/../../../up", "..\\up", "C:up", "C:\\up", "\\up"]
)
def test_a_member_that_leads_out_of_the_archive_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "inside").mkdir()
    said = refused(archive(tmp_path / "inside" / "net.keras", config_of(), **{name: b"out"}))
    assert f"outside its folder, {name!r}: refused" in said
    assert sorted(path.name for path in tmp_path.iterdir()) in (["home", "inside"], ["inside"])


@pytest.mark.parametrize("name", [".", "./", "./config.json", "a\nb"])
def test_a_member_with_an_odd_name_never_surprises(tmp_path: Path, name: str) -> None:
    path = archive(tmp_path / "net.keras", config_of(layer("GlobalMaxPooling2D", "most")), **{name: b"{}"})
    try:
        check_keras(path)
    except ModelError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("name", ["config.json", "model.weights.h5", "assets/words"])
def test_an_archive_bomb_is_refused_before_it_is_unpacked(tmp_path: Path, name: str) -> None:
    path = archive(tmp_path / "net.keras", config_of(), **{name.replace(".", "__"): bytes(200 * 1024**2)})
    assert path.stat().st_size < 1024**2
    said = refused(path)
    assert "refused as an archive bomb" in said
    assert "would unpack to 209,7" in said


def test_many_small_members_are_a_bomb_too(tmp_path: Path) -> None:
    members = {f"assets/{number}": bytes(1024**2) for number in range(40)}
    assert "archive bomb" in refused(archive(tmp_path / "net.keras", config_of(), **members))


@pytest.mark.parametrize("missing", ["config.json", "model.weights.h5"])
def test_an_archive_with_a_part_missing_is_refused(tmp_path: Path, missing: str) -> None:
    whole = archive(tmp_path / "whole.keras", config_of())
    path = tmp_path / "net.keras"
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(path, "w") as new:
        for name in set(old.namelist()) - {missing}:
            new.writestr(name, old.read(name))
    assert missing in refused(path)


def rewritten(path: Path, change: Callable[[bytearray, int], None]) -> Path:
    """Change the header of config.json, before its data and in the directory at the end."""
    data = bytearray(path.read_bytes())
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = data.index(mark)
        while b"config.json" not in data[at : at + 60]:
            at = data.index(mark, at + 1)
        change(data, at + offset)
    path.write_bytes(data)
    return path


def test_an_encrypted_or_oddly_packed_archive_is_refused(tmp_path: Path) -> None:
    def encrypt(data: bytearray, at: int) -> None:
        data[at] |= 1

    def pack_by(method: int) -> Callable[[bytearray, int], None]:
        return lambda data, at: struct.pack_into("<H", data, at + 2, method)

    for change in (encrypt, pack_by(99), pack_by(zipfile.ZIP_LZMA), pack_by(zipfile.ZIP_BZIP2), pack_by(0)):
        path = rewritten(archive(tmp_path / "net.keras", config_of()), change)
        assert "is not a .keras model" in refused(path)


def test_a_damaged_archive_is_refused_wherever_the_damage_is(tmp_path: Path) -> None:
    whole = archive(tmp_path / "net.keras", config_of(layer("GlobalMaxPooling2D", "most"))).read_bytes()
    rng = np.random.default_rng(0)
    path, n_refused = tmp_path / "damaged.keras", 0
    for _ in range(300):
        data = bytearray(whole)
        for at in rng.integers(0, len(whole), 3):
            data[at] ^= int(rng.integers(1, 256))
        path.write_bytes(data if rng.random() < 0.7 else data[: rng.integers(0, len(data))])
        try:
            check_keras(path)
        except ModelError as error:
            n_refused += 1
            assert "\n" not in str(error)
    assert n_refused > 100


# -- weights -------------------------------------------------------------------------------------------------


def reaching_out(path: Path, how: str, secret: Path) -> Path:
    """Write HDF5 weights with values in another file."""
    with h5py.File(secret, "w") as other:
        other["values"] = np.arange(4.0)
    with h5py.File(path, "w") as file:
        group = file.create_group("layers/conv")
        group["kernel"] = np.zeros(3)
        if how == "link":
            group["vars"] = h5py.ExternalLink(str(secret), "/values")
        elif how == "storage":
            group.create_dataset("vars", (4,), "f8", external=[(str(secret), 0, 32)])
        else:
            layout = h5py.VirtualLayout((4,), "f8")
            layout[:] = h5py.VirtualSource(str(secret), "values", (4,))
            group.create_virtual_dataset("vars", layout)
    return path


REACHES = {
    "link": "link to another file at '/layers/conv/vars'",
    "storage": "in another file",
    "virtual": "in another",
}


@pytest.mark.parametrize("how", REACHES)
def test_weights_that_reach_out_of_their_file_are_refused(tmp_path: Path, how: str) -> None:
    path = reaching_out(tmp_path / "own.weights.h5", how, tmp_path / "secret.h5")
    with pytest.raises(ModelError, match=REACHES[how]):
        check_weights(path)
    inside = archive(tmp_path / "net.keras", config_of(), model__weights__h5=path.read_bytes())
    assert REACHES[how] in refused(inside)


def test_links_within_the_weights_are_followed_no_further(tmp_path: Path) -> None:
    path = tmp_path / "own.weights.h5"
    with h5py.File(path, "w") as file:
        file["a/b"] = np.zeros(3)
        file["a/soft"] = h5py.SoftLink("/a/b")
        file["a/nowhere"] = h5py.SoftLink("/none")
    check_weights(path)


def test_weights_that_go_round_in_a_circle_come_to_an_end(tmp_path: Path) -> None:
    path = tmp_path / "own.weights.h5"
    with h5py.File(path, "w") as file:
        group = file
        for _ in range(60):  # two ways on at each of them: more ways than could ever be gone
            group = group.create_group("one")
            group.parent["two"] = group
        group["round"] = file["/"]
        group["values"] = np.zeros(3)
    check_weights(path)
    with h5py.File(path, "a") as file:
        file["/".join(["one"] * 60)]["out"] = h5py.ExternalLink("/etc/passwd", "/")
    with pytest.raises(ModelError, match="link to another file"):
        check_weights(path)


@pytest.mark.parametrize("content", [b"", b"bananas", b"\x89HDF\r\n\x1a\n" + bytes(50)])
def test_something_else_is_no_weights(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "own.weights.h5"
    path.write_bytes(content)
    with pytest.raises(ModelError, match="are not an HDF5 file"):
        check_weights(path)
    with pytest.raises(ModelError, match="are not an HDF5 file"):
        check_weights(tmp_path / "none.h5")


def test_damaged_weights_are_never_worse_than_refused(tmp_path: Path) -> None:
    whole = weights(kernel=np.arange(300.0), bias=np.arange(5.0))
    rng = np.random.default_rng(1)
    path = tmp_path / "own.weights.h5"
    for _ in range(300):
        data = bytearray(whole)
        for at in rng.integers(0, len(whole), 4):
            data[at] = int(rng.integers(0, 256))
        path.write_bytes(data)
        try:
            check_weights(path)
        except ModelError as error:
            assert "\n" not in str(error)
