"""Find a model by its name: bundled, added by the user, of Keras Applications, a file, or of a hub."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurepress.errors import ModelError
from featurepress.models import store
from featurepress.models.card import ModelCard
from featurepress.progress import OnProgress, show_progress, step
from featurepress.settings import Choices, FeatureSettings, nearest
from featurepress.specs import PreprocessSpec

if TYPE_CHECKING:
    from featurepress.models.origins.keras_applications import Architecture

EMBEDDED_V1 = ModelCard(
    name="embedded-v1",
    aliases=("embedded",),
    architecture="MobileNetV2, width 0.5, at 96x96; Keras layer order, padding and epsilon",
    n_parameters=706_224,
    preprocess=PreprocessSpec(height=96, width=96),
    output="Identity:0",
    grid=(3, 3, 1280),
    file="embedded-v1.onnx",
    weights_sha256="81ade05dd9a86e2a7d6d8777593e1c15b4524a858c41fb03d9a0b9aefc9a44ec",
    training_data=(
        "distilled from an ImageNet MobileNetV2 1.0 at 224 on 137,000 images: Tiny-ImageNet, Caltech-101, "
        "photographs of PACS, scenes, and 8,000 of 54 Fruits-360 classes, all without labels"
    ),
    licence="Apache-2.0; the training images keep their own terms",
    source="ships with the package",
    advice="for a first try, for tests and for machines without a network; not for production",
    quality={
        "grocery, 81 classes": (0.374, 0.288),
        "clothing, 10 classes": (0.640, 0.478),
        "flowers, 5 classes": (0.686, 0.603),
        "art paintings, 7 classes": (0.595, 0.501),
    },
)

CARDS = (EMBEDDED_V1,)

# Names that end so are paths of model files.
MODEL_SUFFIXES = (".keras", ".onnx", ".tflite", ".xml", ".pb")
HUB = "hf:"


def find_card(
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
        True shows downloads and conversions in a terminal or notebook. A callable gets a `Progress`.

    Returns
    -------
    ModelCard

    Raises
    ------
    ModelError
        The model does not exist (close matches are listed), does not allow these options, or cannot be
        downloaded.
    """
    FeatureSettings(size=size, pooling=pooling)  # checks the ranges
    for card in CARDS:
        if name in (card.name, *card.aliases):
            _refuse_choices(card.name, size=size, alpha=alpha, weights=weights)
            return card
    if name.startswith(HUB):
        from featurepress.models.origins import hub

        _refuse_choices(name, alpha=alpha, weights=weights)
        with show_progress(progress) as on_progress:
            return hub.load_card(name, size=size, on_progress=on_progress)
    if (card_named := store.find_name(name)) is not None:
        _refuse_choices(name, size=size, alpha=alpha, weights=weights)
        return card_named
    if looks_like_a_path(name):
        from featurepress.models.origins import files

        _refuse_choices(name, alpha=alpha, weights=weights)
        with show_progress(progress) as on_progress:
            return files.load_card(name, Choices(size=size), on_progress=on_progress)
    from featurepress.models.origins import keras_applications

    architecture = find_architecture(name)
    if weights == keras_applications.RANDOM:
        raise ModelError(
            "Random weights are for featurepress models bench --random only: their features are meaningless."
        )
    with show_progress(progress) as on_progress:
        return keras_applications.load_card(
            architecture, size=size, alpha=alpha, weights=weights, pooling=pooling, on_progress=on_progress
        )


def looks_like_a_path(name: str) -> bool:
    """Whether a model's name is the path of a file or folder."""
    return "/" in name or name.endswith(MODEL_SUFFIXES) or (Path(name) / "saved_model.pb").is_file()


def find_architecture(name: str) -> Architecture:
    """Return an architecture of Keras Applications; case, dashes and underscores of its name do not matter.

    Raises
    ------
    ModelError
        There is no such model; close matches are listed.
    """
    from featurepress.models.origins import keras_applications

    architectures = keras_applications.architectures()
    by_plain = {keras_applications.plain(key): key for key in architectures}
    if (found := by_plain.get(keras_applications.plain(name))) is not None:
        return architectures[found]
    all_names = [*(n for card in CARDS for n in (card.name, *card.aliases)), *store.names(), *architectures]
    raise ModelError(
        f"There is no model '{name}'{nearest(name.lower(), all_names)} "
        f"featurepress models list shows all {len(all_names)}; a file or hf:org/repo is possible too."
    )


def _refuse_choices(name: str, **choices: object) -> None:
    options = [f"--{choice}" for choice, value in choices.items() if value is not None]
    if options:
        raise ModelError(f"The model {name} does not allow {' and '.join(options)}. Leave it out.")


# -- lists and facts ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ListedModel:
    """One line of ``models list``.

    Attributes
    ----------
    name, input, weights, licence : str
        Text for display.
    n_parameters, n_features : int
        With the pooling avg; 0 if unknown until the model is converted.
    here : str
        Sizes that are ready.
    images_per_second : float or None
        The faster precision's, as last measured here.
    """

    name: str
    n_parameters: int
    input: str
    n_features: int
    weights: str
    licence: str
    here: str
    images_per_second: float | None


def list_models(*, progress: bool | OnProgress = True) -> list[ListedModel]:
    """List all models: bundled, your own, stored ones of a hub, and Keras Applications.

    Parameters
    ----------
    progress : bool or callable
        As for `pull`. The first call of an installation asks Keras for its architectures, which takes some seconds.
    """
    from featurepress.models.origins import keras_applications

    with show_progress(progress) as on_progress:
        on_progress(step("listing models"))
        architectures = keras_applications.architectures()
    stored = store.stored_cards()
    own = [(name, card) for name in store.names() if (card := store.find_name(name)) is not None]
    own += [(card.name, card) for card in stored if card.name.startswith(HUB)]
    found = [_listed(card.aliases[0], card, f"{card.preprocess.height}") for card in CARDS]
    found += [_listed(name, card, f"{card.preprocess.height}") for name, card in own]
    sizes = json.loads((Path(__file__).parent / "origins" / "keras_sizes.json").read_text("utf-8"))
    for name, architecture in architectures.items():
        n_parameters, n_features = sizes.get(name, (0, 0))
        default_size = keras_applications.DEFAULT_SIZES.get(name, architecture.default_size)
        here = [card for card in stored if card.name == name and card.origin.get("variant") == "imagenet"]
        found.append(
            ListedModel(
                name=name,
                n_parameters=n_parameters,
                input=f"{default_size} ({architecture.min_size}…)",
                n_features=n_features,
                weights="ImageNet",
                licence=architecture.licence,
                here=", ".join(sorted({str(card.preprocess.height) for card in here}, key=int)),
                images_per_second=max((speed for card in here if (speed := _speed(card))), default=None),
            )
        )
    return found


def _listed(name: str, card: ModelCard, here: str) -> ListedModel:
    return ListedModel(
        name=name,
        n_parameters=card.n_parameters,
        input=str(card.preprocess.height),
        n_features=card.grid[2],
        weights="hub" if name.startswith(HUB) else "bundled" if name in card.aliases else "your file",
        licence=card.licence.partition(";")[0],
        here=here,
        images_per_second=_speed(card),
    )


def _speed(card: ModelCard) -> float | None:
    measured = store.read_note(card.file, store.SPEED).get("images_per_second", {})
    return max(measured.values(), default=None)


def describe_model(
    name: str, *, size: int | None = None, alpha: float | None = None, weights: str | None = None
) -> dict[str, Any]:
    """Return what is known about a model; nothing of Keras Applications is downloaded for it.

    Parameters
    ----------
    name, size, alpha, weights
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
    from featurepress.models.origins import keras_applications

    choices = {"size": size, "alpha": alpha, "weights": weights}
    is_other = any(name in (card.name, *card.aliases) for card in CARDS) or name.startswith(HUB)
    if is_other or store.find_name(name) is not None or looks_like_a_path(name):
        return _described(find_card(name, **choices))  # type: ignore[arg-type]
    architecture = find_architecture(name)
    if (card := keras_applications.find_stored(architecture, size=size, alpha=alpha, weights=weights)) is not None:
        return _described(card)
    size = keras_applications.checked_size(architecture, size)
    default_size = keras_applications.DEFAULT_SIZES.get(architecture.name, architecture.default_size)
    return {
        "name": architecture.name,
        "what": f"{architecture.keras_name} of Keras Applications",
        "input": str(architecture.preprocess(size)),
        "mode": architecture.mode,
        "sizes": f"{architecture.min_size} and more, by default {default_size}",
        "alpha": "" if architecture.alpha is None else f"{architecture.alpha:g} by default",
        "licence": architecture.licence,
        "status": f"not here yet: featurepress models pull {architecture.name} --size {size}",
    }


def _described(card: ModelCard) -> dict[str, Any]:
    height, width, channels = card.grid
    return {
        "name": card.name,
        "what": card.architecture,
        "parameters": card.n_parameters,
        "input": str(card.preprocess),
        "mode": card.origin.get("options", {}).get("mode", ""),
        "output": f"{card.output}, {height}x{width}x{channels}" if not card.pooled else card.output,
        "features": f"{channels:,} with avg"
        + ("" if card.pooled else f", {height * width * channels:,} with flatten"),
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
        "speed": ", ".join(
            f"{speed:,.0f} images/s in {precision}"
            for precision, speed in store.read_note(card.file, store.SPEED).get("images_per_second", {}).items()
        ),
    }


def add_model(  # noqa: PLR0913 - an editor shows every option
    file: str | Path,
    name: str,
    *,
    size: int | None = None,
    output: str | None = None,
    resize: str | None = None,
    shortest_edge: int | None = None,
    interpolation: str | None = None,
    like: str | None = None,
    antialias: bool | None = None,
    mode: str | None = None,
    mean: Sequence[float] | None = None,
    scale: Sequence[float] | None = None,
    channel_order: str | None = None,
    layout: str | None = None,
    progress: bool | OnProgress = True,
) -> ModelCard:
    """Check and convert a model file, and store it under a name that `embed` accepts.

    None leaves an option to the file, or to the default for its kind.

    Parameters
    ----------
    file : str or path
        A ``.keras``, ``.onnx``, ``.tflite`` or OpenVINO ``.xml`` file, or a SavedModel folder.
    name : str
        Letters, digits, ``.``, ``_`` and ``-``. An existing name of your own is overwritten.
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
    progress : bool or callable
        As for `pull`.

    Returns
    -------
    ModelCard
        The stored model.

    Raises
    ------
    ModelError
        The file is not a model that can be embedded, or the name is reserved.
    SettingError
        An option is out of its range, or contradicts another.
    """
    from featurepress.models.origins import files, keras_applications

    choices = Choices(
        size=size,
        output=output,
        resize=resize,
        shortest_edge=shortest_edge,
        interpolation=interpolation,
        like=like,
        antialias=antialias,
        mode=mode,
        mean=None if mean is None else tuple(mean),
        scale=None if scale is None else tuple(scale),
        channel_order=channel_order,
        layout=layout,
    )
    reserved = [*(n for card in CARDS for n in (card.name, *card.aliases)), *keras_applications.architectures()]
    with show_progress(progress) as on_progress:
        return files.add(str(file), name, choices, reserved=reserved, on_progress=on_progress)
