"""The public functions of `featurepress.models`: list, show, pull and add."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

from featurepress.models import store
from featurepress.models.card import ModelCard
from featurepress.models.catalog import CARDS, HUB, find_architecture, find_card, find_other, reserved_names
from featurepress.models.origins import files, keras_applications
from featurepress.progress import OnProgress, show_progress, step
from featurepress.settings import AddOptions, Choices


@dataclass(frozen=True)
class ListedModel:
    """One line of ``models list``."""

    name: str
    n_parameters: int  # 0 if unknown until the model is converted
    input: str  # side in pixels, for display
    n_features: int  # with pooling avg; 0 if unknown until the model is converted
    weights: str  # their origin, for display
    licence: str
    here: str  # the stored sizes
    images_per_second: float | None  # of the faster precision, as last measured on this machine


def list_models(*, progress: bool | OnProgress = True) -> list[ListedModel]:
    """List all models: bundled, your own, stored ones of a hub, and Keras Applications.

    The first call of an installation takes some seconds, because it starts Keras.

    Parameters
    ----------
    progress : bool or callable
        As for `pull`.
    """
    with show_progress(progress) as on_progress:
        on_progress(step("listing models"))
        architectures = keras_applications.architectures()
    stored = store.stored_cards()
    named = [(card.aliases[0], card) for card in CARDS]
    named += [(name, card) for name in store.names() if (card := store.find_name(name)) is not None]
    named += [(card.name, card) for card in stored if card.name.startswith(HUB)]
    found = [_listed(name, card) for name, card in named]
    sizes = json.loads((Path(__file__).parent / "origins" / "keras_sizes.json").read_text("utf-8"))
    for name, architecture in architectures.items():
        n_parameters, n_features = sizes.get(name, (0, 0))
        here = [card for card in stored if card.name == name and card.origin.get("variant") == "imagenet"]
        found.append(
            ListedModel(
                name=name,
                n_parameters=n_parameters,
                input=f"{architecture.default_size} ({architecture.min_size}…)",
                n_features=n_features,
                weights="ImageNet",
                licence=architecture.licence,
                here=", ".join(sorted({str(card.preprocess.height) for card in here}, key=int)),
                images_per_second=max((speed for card in here for speed in _speeds(card).values()), default=None),
            )
        )
    return found


def _listed(name: str, card: ModelCard) -> ListedModel:
    return ListedModel(
        name=name,
        n_parameters=card.n_parameters,
        input=str(card.preprocess.height),
        n_features=card.grid[2],
        weights="hub" if name.startswith(HUB) else "bundled" if name in card.aliases else "your file",
        licence=card.licence.partition(";")[0],
        here=str(card.preprocess.height),
        images_per_second=max(_speeds(card).values(), default=None),
    )


def _speeds(card: ModelCard) -> dict[str, float]:
    """Return the images per second by precision, if they were measured."""
    speeds: dict[str, float] = store.read_note(card.file, store.SPEED).get("images_per_second", {})
    return speeds


def show(
    name: str,
    *,
    size: int | None = None,
    alpha: float | None = None,
    weights: str | None = None,
    progress: bool | OnProgress = True,
) -> dict[str, Any]:
    """Return what is known about a model. Models of Keras Applications are not downloaded for it.

    Parameters
    ----------
    name, size, alpha, weights, progress
        As for `pull`.

    Returns
    -------
    dict
        Facts by name, for display: input, features, licence, quality, certificates, status and more.

    Raises
    ------
    ModelError
        The model does not exist.
    """
    with show_progress(progress) as on_progress:
        card = find_other(name, size=size, alpha=alpha, weights=weights, on_progress=on_progress)
        if card is None:
            architecture = find_architecture(name)
            card = keras_applications.find_stored(architecture, size=size, alpha=alpha, weights=weights)
    if card is not None:
        return _described(card)
    size = keras_applications.checked_size(architecture, size)
    return {
        "name": architecture.name,
        "what": f"{architecture.keras_name} of Keras Applications",
        "input": str(architecture.preprocess(size)),
        "mode": architecture.mode,
        "sizes": f"{architecture.min_size} and more, by default {architecture.default_size}",
        "alpha": "" if architecture.alpha is None else f"{architecture.alpha:g} by default",
        "licence": architecture.licence,
        "status": f"not here yet: featurepress models pull {architecture.name} --size {size}",
    }


def _described(card: ModelCard) -> dict[str, Any]:
    height, width, channels = card.grid
    flattened = f", {height * width * channels:,} with flatten"
    return {
        "name": card.name,
        "what": card.architecture,
        "parameters": card.n_parameters,
        "input": str(card.preprocess),
        "mode": card.origin.get("options", {}).get("mode", ""),
        "output": f"{card.output}, {height}x{width}x{channels}" if not card.pooled else card.output,
        "features": f"{channels:,} with avg" + (flattened if not card.pooled else ""),
        "trained on": card.training_data,
        "licence": card.licence,
        "source": card.source,
        "weights": f"sha256 {card.weights_sha256}",
        "quality": dict(card.quality),
        "advice": card.advice,
        "notes": list(card.notes),
        "fingerprint": card.backbone(card.pooled if card.pooled in ("avg", "max") else "avg").fingerprint,
        "status": "ready" if card.batch is None else f"ready, {card.batch} image(s) at a time only",
        "certificates": store.read_note(card.file, store.CERTIFICATE),
        "speed": ", ".join(f"{speed:,.0f} images/s in {precision}" for precision, speed in _speeds(card).items()),
    }


def pull(
    name: str,
    *,
    size: int | None = None,
    alpha: float | None = None,
    weights: str | None = None,
    pooling: str = "avg",
    progress: bool | OnProgress = True,
) -> ModelCard:
    """Download a model if needed, check it, convert it once, and return its card.

    Parameters
    ----------
    name : str
        A name from `list`, a name of your own from `add`, the path of a model file, or
        ``hf:org/repo[@revision][:file]``.
    size : int, optional
        Side of the input in pixels, 1 to 4096, for models that leave a choice.
    alpha : float, optional
        Width of a MobileNet.
    weights : str, optional
        ``imagenet`` (default) or the path of a Keras weights file, for Keras Applications.
    pooling : str
        ``avg``, ``flatten`` or ``max``. A few architectures are converted once per pooling.
    progress : bool or callable
        True shows one line in a terminal or notebook. A callable gets a `Progress` several times a second.

    Raises
    ------
    ModelError
        The model does not exist (close matches are listed), does not allow these options, or cannot be
        downloaded.
    """
    with show_progress(progress) as on_progress:
        return find_card(name, size=size, alpha=alpha, weights=weights, pooling=pooling, on_progress=on_progress)


def add(
    file: str | Path, name: str, *, progress: bool | OnProgress = True, **options: Unpack[AddOptions]
) -> ModelCard:
    """Check and convert a model file, and store it under a name that `embed` accepts.

    None leaves an option to the file, or to the default for its kind.

    Parameters
    ----------
    file : str or path
        A ``.keras``, ``.onnx``, ``.tflite`` or OpenVINO ``.xml`` file, or a SavedModel folder.
    name : str
        Letters, digits, ``.``, ``_`` and ``-``. An existing name of your own is overwritten.
    progress : bool or callable
        As for `pull`.
    size : int, optional
        Side of the input in pixels, 1 to 4096, if the file leaves it open.
    output : str, optional
        The tensor whose values are the features; `outputs` lists them. By default the first output.
    resize : {"stretch", "crop"}, optional
        How images of other proportions become square. By default ``stretch``.
    shortest_edge : int, optional
        With ``crop``: length in pixels of the shorter side before cropping. By default the size.
    interpolation : {"bilinear", "bicubic", "area", "nearest", "box", "hamming", "lanczos"}, optional
        By default ``bilinear``.
    like : {"pillow", "tensorflow"}, optional
        The library whose resizing is reproduced. By default ``pillow`` for ONNX, OpenVINO and byte inputs,
        ``tensorflow`` for the others.
    antialias : bool, optional
        With ``like="tensorflow"`` only. By default False.
    mode : {"tf", "caffe", "torch", "raw"}, optional
        Normalisation by Keras's name. By default ``raw``: levels from 0 to 255.
    mean, scale : sequence of float, optional
        Normalisation ``(pixel - mean) / scale`` of pixels from 0 to 1; one number, or one per channel.
    channel_order : {"RGB", "BGR"}, optional
        By default as `mode` says, else ``RGB``.
    layout : {"NHWC", "NCHW"}, optional
        Axes of the input, if its shape is ambiguous.

    Returns
    -------
    ModelCard
        The stored model.

    Raises
    ------
    ModelError
        The file is not a model that can be embedded, or the name is reserved.
    SettingError
        An option is unknown or out of its range, or contradicts another.
    """
    choices = Choices.from_options(**options)
    with show_progress(progress) as on_progress:
        return files.add(str(file), name, choices, reserved=reserved_names(), on_progress=on_progress)
