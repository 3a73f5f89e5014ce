"""Check a model file before a library reads it: no code, no archive bombs, no files outside its folder.

A check executes nothing and follows no link. Of an archive, only the weights are unpacked, into an unnamed
temporary file, after their size is checked.
"""

from __future__ import annotations

import json
import lzma
import os.path
import shutil
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from featurepress.errors import ModelError

# What zipfile, its decompressors, json and h5py raise for damaged files.
_DAMAGE = (
    *(ArithmeticError, EOFError, LookupError, OSError, RuntimeError, TypeError, ValueError),
    *(lzma.LZMAError, struct.error, zipfile.BadZipFile, zlib.error),
)
MAX_JSON_BYTES = 64 * 1024**2
# Weights hardly compress: a file that grows tenfold is not a model.
_MAX_RATIO, _FREE_BYTES = 10, 10 * 1024**2
_KERAS_MEMBERS = ("config.json", "metadata.json", "model.weights.h5")
# Classes that hold code, load other files, or reach out of the model.
_REFUSED_CLASSES = ("Lambda", "__lambda__", "TFSMLayer", "TorchModuleWrapper", "JaxLayer", "FlaxLayer")
_FILE_READERS = ("StringLookup", "IntegerLookup", "TextVectorization")
_KERAS_MODULES = (
    *("keras.layers", "keras.models", "keras.initializers", "keras.regularizers", "keras.constraints"),
    *("keras.activations", "keras.dtype_policies", "keras.ops", "keras.random"),
    "keras.backend.common.keras_tensor",
    *("keras.optimizers", "keras.losses", "keras.metrics"),  # of a compiled model inside another one
)


def check_keras(path: Path) -> dict[str, Any]:
    """Check a ``.keras`` archive, and return its config.

    Raises
    ------
    ModelError
        The file is not an archive, has other members than a model, or has a layer that carries code.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            _check_members(path, archive.infolist())
            config: dict[str, Any] = json.loads(_read_start(archive, "config.json"))
            # HDF5 seeks back and forth, and an archive member is unpacked again at each seek back.
            with archive.open("model.weights.h5") as member, tempfile.TemporaryFile() as weights:
                shutil.copyfileobj(member, weights)
                _check_h5(path, weights)
    except _DAMAGE as error:
        raise ModelError(f"The file '{path}' is not a .keras model, or is damaged ({_reason(error)}).") from error
    _check_config(path, config)
    return config


def _reason(error: Exception) -> str:
    return " ".join(str(error).strip("'\"").split())[:120] or type(error).__name__


def _check_members(path: Path, members: list[zipfile.ZipInfo]) -> None:
    for member in members:
        name = PurePosixPath(member.filename.replace("\\", "/"))
        first = name.parts[0] if name.parts else ""
        if name.is_absolute() or ".." in name.parts or ":" in first:
            raise ModelError(f"The model '{path}' has a member outside its folder, {member.filename!r}: refused.")
        if str(name) not in _KERAS_MEMBERS and first != "assets":
            raise ModelError(
                f"The model '{path}' has {member.filename!r}, which does not belong to a .keras file "
                f"({', '.join(_KERAS_MEMBERS)}): refused."
            )
    packed, unpacked = path.stat().st_size, sum(member.file_size for member in members)
    if unpacked > _MAX_RATIO * packed + _FREE_BYTES:
        raise ModelError(
            f"The model '{path}' has {packed:,} bytes and would unpack to {unpacked:,}: refused as an archive bomb."
        )


def _read_start(archive: zipfile.ZipFile, name: str) -> bytes:
    """Read a member of at most `MAX_JSON_BYTES`."""
    with archive.open(name) as file:
        data = file.read(MAX_JSON_BYTES + 1)
    if len(data) > MAX_JSON_BYTES:
        raise ValueError(f"its {name} is larger than {MAX_JSON_BYTES:,} bytes")
    return data


def check_weights(path: Path) -> None:
    """Check a file of Keras weights; refuse links to other files.

    Raises
    ------
    ModelError
        The file is not HDF5, or refers to another file.
    """
    try:
        with path.open("rb") as file:
            _check_h5(path, file)
    except _DAMAGE as error:
        raise ModelError(
            f"The weights '{path}' are not an HDF5 file, or are damaged ({_reason(error)})."
        ) from error


def _check_h5(path: Path, file: Any) -> None:
    import h5py

    with h5py.File(file, "r") as weights:
        for name, member in _members(weights):
            if isinstance(member, h5py.ExternalLink):
                raise ModelError(
                    f"The weights '{path}' link to another file at '{name}' ({member.filename}): refused."
                )
            if isinstance(member, h5py.Dataset) and (member.external or member.is_virtual):
                raise ModelError(f"The weights '{path}' keep '{name}' in another file: refused.")


def _members(group: Any, prefix: str = "", seen: set[int] | None = None) -> Iterator[tuple[str, Any]]:
    """Yield the links and datasets of an HDF5 file, each group once, without following a link out of it."""
    import h5py

    seen = set() if seen is None else seen
    address = h5py.h5o.get_info(group.id).addr
    if address in seen:
        return
    seen.add(address)
    for name in group:
        link, full_name = group.get(name, getlink=True), f"{prefix}/{name}"
        member = group[name] if isinstance(link, h5py.HardLink) else link
        yield full_name, member
        if isinstance(member, h5py.Group):
            yield from _members(member, full_name, seen)


def _check_config(path: Path, config: Any) -> None:
    """Refuse everything except Keras's own layers in Functional and Sequential models."""
    if not isinstance(config, dict) or config.get("class_name") not in ("Functional", "Sequential"):
        kind = config.get("class_name") if isinstance(config, dict) else type(config).__name__
        raise ModelError(
            f"The model '{path}' is of the class '{kind}', which is custom code. Only Functional and "
            "Sequential models of Keras's own layers are supported; export it to ONNX."
        )
    # compile_config is not read; see load_keras.
    for entry in _objects({name: value for name, value in config.items() if name != "compile_config"}):
        _check_object(path, entry)


def _check_object(path: Path, entry: dict[str, Any]) -> None:
    kind, module = entry["class_name"], entry.get("module")
    inner = entry.get("config")
    name = inner.get("name", kind) if isinstance(inner, dict) else kind
    if kind in _REFUSED_CLASSES:
        raise ModelError(
            f"The model '{path}' has a {kind.strip('_')} layer, '{name}', which carries custom code: refused, "
            "and not executed. Replace it with Keras's own layers."
        )
    if kind in _FILE_READERS:
        raise ModelError(f"The model '{path}' has a {kind} layer, '{name}', which reads other files: refused.")
    is_function = kind == "function" and module in ("builtins", None) and isinstance(inner, str)
    if is_function and "." not in str(inner) and ":" not in str(inner):
        return  # an activation by its name
    public_name = str(module).replace("keras.src.", "keras.", 1)
    is_foreign = module is not None and module != "keras" and not public_name.startswith(_KERAS_MODULES)
    if is_function or is_foreign:
        raise ModelError(
            f"The model '{path}' names '{kind}' of the module '{module}', which is not Keras's own: refused, and "
            "not executed."
        )


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    """Yield everything in a config that would become an object."""
    if isinstance(value, dict):
        if isinstance(value.get("class_name"), str):
            yield value
        for inner in value.values():
            yield from _objects(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _objects(inner)


# -- ONNX ----------------------------------------------------------------------------------------------------


def external_files(path: Path) -> list[Path]:
    """Return the files with weights of an ONNX model; all are in its folder.

    Raises
    ------
    ModelError
        The file is not ONNX, or a file with weights is outside its folder or missing.
    """
    names = external_names(path)
    for name in names:
        if not os.path.isfile(path.parent / name):  # noqa: PTH113 - False if the name is too long
            raise ModelError(f"The model '{path}' has weights in {name!r}, which is not in its folder.")
    return [path.parent / name for name in names]


def external_names(path: Path) -> list[str]:
    """Return the names of the files with weights of an ONNX model, existing or not.

    The protobuf fields are read by their numbers in onnx.proto: ModelProto.graph 7, GraphProto.node 1
    and initializer 5, NodeProto.attribute 5, AttributeProto.t 5, g 6, tensors 10, graphs 11, and
    TensorProto.external_data 13 with key 1 and value 2.

    Raises
    ------
    ModelError
        The file is not ONNX, or a file with weights is outside its folder.
    """
    try:
        data = memoryview(path.read_bytes())
        names = {name for graph in _messages(data, 7) for name in _locations(graph)}
    except (IndexError, ValueError, OSError, RecursionError) as error:
        raise ModelError(f"The file '{path}' is not an ONNX model, or is damaged.") from error
    for name in names:
        # By name only: in caches these are links to files elsewhere.
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ModelError(f"The model '{path}' has weights in {name!r}, outside its folder: refused.")
    return sorted(names)


def _locations(graph: memoryview) -> Iterator[str]:
    tensors = list(_messages(graph, 5))
    for node in _messages(graph, 1):
        for attribute in _messages(node, 5):
            tensors += [*_messages(attribute, 5), *_messages(attribute, 10)]
            for inner in (*_messages(attribute, 6), *_messages(attribute, 11)):
                yield from _locations(inner)
    for tensor in tensors:
        for entry in _messages(tensor, 13):
            if b"location" in [bytes(key) for key in _messages(entry, 1)]:  # the last one counts
                yield from (bytes(value).decode() for value in _messages(entry, 2))


def _messages(data: memoryview, wanted: int) -> Iterator[memoryview]:
    """Yield the length-delimited fields with one number in a protobuf message."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        if tag >= 2**32:  # other readers would use its lower half
            raise ValueError("not a field")
        number, kind = tag >> 3, tag & 7
        if kind == 0:
            _, at = _varint(data, at)
        elif kind == 2:
            size, at = _varint(data, at)
            if at + size > len(data):
                raise ValueError("truncated")
            if number == wanted:
                yield data[at : at + size]
            at += size
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        else:
            raise ValueError("not protobuf")


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("not a number")
