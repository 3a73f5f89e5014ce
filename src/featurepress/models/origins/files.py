"""Model files of the user: a file or folder is checked, converted once, and found again by its content."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from featurepress.errors import ModelError, SettingError
from featurepress.models import store
from featurepress.models.card import KERAS_MODES, ModelCard
from featurepress.models.conversion import guard
from featurepress.models.origins.keras_applications import in_child
from featurepress.progress import OnProgress
from featurepress.settings import Choices
from featurepress.specs import PreprocessSpec

SUFFIXES = {".keras": "keras", ".onnx": "onnx", ".tflite": "tflite", ".xml": "openvino"}
# The library whose resizing such models are usually trained with.
LIKE = {
    **dict.fromkeys(("keras", "tflite", "saved_model"), "tensorflow"),
    **dict.fromkeys(("onnx", "openvino"), "pillow"),
}

_UNKNOWN_NORMALISATION = (
    "Its normalisation is unknown: levels from 0 to 255 are passed on unchanged. If it was trained with "
    "another one, run featurepress models add with --mode, or with --mean and --scale."
)


def load_card(file: str, choices: Choices, *, on_progress: OnProgress, name: str | None = None) -> ModelCard:
    """Return the card of a model file or folder, converted if it is not stored.

    Its name is by default that of the file.

    Raises
    ------
    ModelError
        The file is not a model that can be embedded; nothing is stored.
    """
    path, kind = find(file)
    content = content_hash(path, kind)
    request = {"kind": kind, "content": content, "choices": asdict(choices), "name": name or path.stem}
    card = store.find_request(request)
    if card is None:
        card = _convert(path, request, choices, on_progress)
        store.write_request(request, card.file)
    return card


def find(file: str) -> tuple[Path, str]:
    """Return the path and the kind of a model file.

    Raises
    ------
    ModelError
        The file does not exist, or its kind is not supported.
    """
    path = Path(file).expanduser().absolute()
    if path.is_dir() and (path / "saved_model.pb").is_file():
        return path, "saved_model"
    if path.is_file() and path.name == "saved_model.pb":
        return path.parent, "saved_model"
    if not path.exists():
        raise ModelError(f"There is no model file '{file}'.")
    if path.is_dir() or path.suffix not in SUFFIXES:
        hint = " Save it again as .keras." if path.suffix in (".h5", ".hdf5") else ""
        raise ModelError(
            f"'{file}' is not a model: it must be a {', '.join(SUFFIXES)} file or a SavedModel folder.{hint}"
        )
    return path, SUFFIXES[path.suffix]


def content_hash(path: Path, kind: str) -> str:
    """Return one hash of all files of a model; refuse files outside its folder."""
    if kind == "saved_model":
        parts = sorted(part for part in path.rglob("*") if part.is_file())
    elif kind == "openvino":
        parts = [path, *([path.with_suffix(".bin")] if path.with_suffix(".bin").is_file() else [])]
    elif kind == "onnx":
        parts = [path, *guard.external_files(path)]
    else:
        parts = [path]
    if len(parts) == 1:
        return store.content_hash(parts[0])
    root = path if path.is_dir() else path.parent
    lines = [f"{store.content_hash(part)}  {part.relative_to(root).as_posix()}\n" for part in parts]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def outputs(file: str | Path) -> list[dict[str, Any]]:
    """List the tensors of a model file that can be its features, from the input to the output.

    Parameters
    ----------
    file : str or path
        As for `add`.

    Returns
    -------
    list of dict
        ``name``, ``shape`` (-1 for an open side) and ``made_by``, the kind of operation or layer.

    Raises
    ------
    ModelError
        The file does not exist or is not a model.
    """
    from featurepress.models.conversion import keras_models

    path, kind = find(str(file))
    content_hash(path, kind)  # refuses files outside its folder
    return cast(list[dict[str, Any]], in_child(keras_models.list_outputs, kind, str(path)))


def add(file: str, name: str, choices: Choices, *, reserved: list[str], on_progress: OnProgress) -> ModelCard:
    """Store a model file under a name for `embed`; names in `reserved` are refused.

    Raises
    ------
    ModelError
        The name is reserved or has other characters, or the file is not a model.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise ModelError(f"A model's name must consist of letters, digits, '.', '_' and '-'. Got '{name}'.")
    if name in reserved:
        raise ModelError(f"The name '{name}' belongs to a model of the list. Choose another --name.")
    card = load_card(file, choices, on_progress=on_progress, name=name)
    store.write_name(name, card.file)
    return card


def _convert(path: Path, request: Mapping[str, Any], choices: Choices, on_progress: OnProgress) -> ModelCard:
    from featurepress.models.conversion import keras_models

    kind, content = request["kind"], request["content"]
    _check_choices(choices)
    with store.scratch_folder() as folder:
        facts = in_child(
            keras_models.convert_file, kind, str(path), asdict(choices), str(folder), on_progress=on_progress
        )
        preprocess, notes = preprocessing(kind, choices, facts)
        made_from = {name: request[name] for name in ("kind", "name", "content")}
        made_from |= {"output": facts["output"], "layout": facts["layout"], "preprocess": preprocess.applied()}
        card = ModelCard(
            name=request["name"],
            architecture=f"{kind} model '{path.name}'",
            n_parameters=facts["n_parameters"],
            preprocess=preprocess,
            output=facts["output"],
            grid=tuple(facts["grid"]),
            file=store.key_of(made_from),
            weights_sha256=content,
            training_data="see its publisher",
            licence="see its publisher",
            source=f"the file '{path}'",
            pooled=facts["pooled"],
            n_bytes=facts["n_bytes"],
            batch=facts["batch"],
            notes=tuple(notes),
            origin={"request": dict(request), "file": str(path), "layout": facts["layout"]},
            versions=facts["versions"],
        )
        store.publish(folder, card)
    return card


def _check_choices(choices: Choices) -> None:
    """Refuse choices that contradict each other."""
    if choices.mode is not None and (choices.mean or choices.scale):
        raise SettingError("Use --mode, or --mean and --scale, but not both.")
    if (choices.mean is None) != (choices.scale is None):
        raise SettingError("Use --mean and --scale together.")
    if any(value > 1 for value in choices.mean or ()):
        raise SettingError(
            f"--mean must be for pixels from 0 to 1, as in torch. Got {max(choices.mean or ())}; divide by 255, "
            "or use --mode."
        )


def preprocessing(kind: str, choices: Choices, facts: Mapping[str, Any]) -> tuple[PreprocessSpec, list[str]]:
    """Build the preprocessing from the user's choices and the file; return it with notes on what was assumed.

    Raises
    ------
    SettingError
        The choices do not fit the model.
    """
    is_bytes = facts["dtype"] == "uint8"
    like = choices.like or ("pillow" if is_bytes else LIKE[kind])
    if is_bytes and like == "tensorflow":
        raise SettingError("The model's input is bytes, but --like tensorflow produces floats. Leave it out.")
    mean, scale, order = KERAS_MODES[choices.mode or "raw"]
    notes = []
    if choices.mean is not None and choices.scale is not None:
        mean = tuple(255 * value for value in choices.mean)
        scale = tuple(255 * value for value in choices.scale)
    elif choices.mode is None and not is_bytes and not facts.get("normalises"):
        notes.append(_UNKNOWN_NORMALISATION)
    if is_bytes and (set(mean), set(scale)) != ({0.0}, {1.0}):
        raise SettingError(
            "The model's input is bytes without normalisation. Leave out --mode, --mean and --scale."
        )
    if choices.output is None and facts.get("n_outputs", 1) > 1:
        notes.append(
            f"It has {facts['n_outputs']} outputs; the first one, '{facts['output']}', is used (--output)."
        )
    crop = choices.resize == "crop"
    dtype = "uint8" if like == "pillow" else "float32"
    interpolation = choices.interpolation or "bilinear"
    antialias = dtype == "uint8" or interpolation == "area" or bool(choices.antialias)
    if choices.antialias is False and dtype == "uint8":
        raise SettingError(
            "Pillow always resizes with antialias. Use --like tensorflow, or leave out --no-antialias."
        )
    spec = PreprocessSpec(
        height=facts["height"],
        width=facts["width"],
        resize=choices.resize or "stretch",
        shortest_edge=(choices.shortest_edge or max(facts["height"], facts["width"])) if crop else None,
        interpolation=interpolation,
        antialias=antialias,
        dtype=dtype,
        mean=mean,
        scale=scale,
        channel_order=choices.channel_order or order,
    )
    return spec, notes
