"""From what people ask for to a model that is ready: embedded, Keras Applications, named, a file, or a hub's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from featurepress.errors import ModelError
from featurepress.models import store
from featurepress.models.card import ModelCard
from featurepress.models.weights import Tell
from featurepress.records import PreprocessSpec
from featurepress.settings import nearest

if TYPE_CHECKING:
    from featurepress.models.zoo import Architecture

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
        "distilled from an ImageNet MobileNetV2 1.0 at 224 on 137,000 pictures: Tiny-ImageNet, Caltech-101, "
        "photographs of PACS, scenes, and 8,000 of 54 Fruits-360 classes, all without labels"
    ),
    licence="Apache-2.0; the training pictures keep their own terms",
    source="ships with the package",
    advice="a model for trying out, for tests and for machines without network; not for real work",
    quality={
        "grocery, 81 classes": (0.374, 0.288),
        "clothing, 10 classes": (0.640, 0.478),
        "flowers, 5 classes": (0.686, 0.603),
        "art paintings, 7 classes": (0.595, 0.501),
    },
)

CARDS = (EMBEDDED_V1,)

# What a file or folder with a model is told by.
MODEL_SUFFIXES = (".keras", ".onnx", ".tflite", ".xml", ".pb")
HUB = "hf:"


def say_nothing(what: str, done: int, of: int) -> None:
    """Take the news of a preparation, and do nothing."""


def find_card(
    name: str,
    *,
    size: int | None = None,
    alpha: float | None = None,
    weights: str | None = None,
    pooling: str = "avg",
    tell: Tell = say_nothing,
) -> ModelCard:
    """Give the card of a model that is ready to run, made ready now if it never was.

    Parameters
    ----------
    name : str
        A name of the list, of Keras Applications or given by ``models add``; the path of a model file; or
        ``hf:org/repo[@revision][:file]``.
    size : int, optional
        Side of the input in pixels, where the model leaves a choice.
    alpha : float, optional
        Width of a MobileNet.
    weights : str, optional
        ``imagenet`` (default) or a keras weights file, for Keras Applications.
    pooling : str
        What is wanted of the model.
    tell : callable
        Hears of downloads and conversions.

    Raises
    ------
    ModelError
        There is no such model (the near names are listed), or it cannot be had so.
    """
    for card in CARDS:
        if name in (card.name, *card.aliases):
            _refuse_choices(card.name, size=size, alpha=alpha, weights=weights)
            return card
    if name.startswith(HUB):
        from featurepress.models import hub

        _refuse_choices(name, alpha=alpha, weights=weights)
        return hub.prepare(name, size=size, tell=tell)
    if (card_named := store.named(name)) is not None:
        _refuse_choices(name, size=size, alpha=alpha, weights=weights)
        return card_named
    if looks_like_a_path(name):
        from featurepress.models import files

        _refuse_choices(name, alpha=alpha, weights=weights)
        return files.prepare(name, files.Choices(size=size), tell=tell)
    from featurepress.models import zoo

    architecture = find_architecture(name)
    return zoo.prepare(architecture, size=size, alpha=alpha, weights=weights, pooling=pooling, tell=tell)


def looks_like_a_path(name: str) -> bool:
    """Whether a model's name is meant as the path of a file or folder."""
    return "/" in name or name.endswith(MODEL_SUFFIXES) or Path(name).expanduser().exists()


def find_architecture(name: str) -> Architecture:
    """Give an architecture of Keras Applications, however its name is written.

    Raises
    ------
    ModelError
        There is none; the near names are listed.
    """
    from featurepress.models import zoo

    known = zoo.architectures()
    by_plain = {zoo.plain(one): one for one in known}
    if (found := by_plain.get(zoo.plain(name))) is not None:
        return known[found]
    all_names = [*(n for card in CARDS for n in (card.name, *card.aliases)), *store.names(), *known]
    raise ModelError(
        f"There is no model '{name}'{nearest(name.lower(), all_names)} "
        f"featurepress models list names all {len(all_names)}; a file or hf:org/repo serves too."
    )


def _refuse_choices(name: str, **choices: object) -> None:
    given = [f"--{choice}" for choice, value in choices.items() if value is not None]
    if given:
        raise ModelError(f"The model {name} leaves no choice of {' and '.join(given)}. Leave it out.")
