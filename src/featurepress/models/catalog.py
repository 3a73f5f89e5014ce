"""Find a model by its name: bundled, added by the user, of Keras Applications, a file, or of a hub."""

from __future__ import annotations

from pathlib import Path

from featurepress.errors import ModelError
from featurepress.models import store
from featurepress.models.card import ModelCard
from featurepress.models.origins import files, hub, keras_applications
from featurepress.models.origins.keras_applications import Architecture
from featurepress.progress import OnProgress, ignore_progress
from featurepress.settings import Choices, FeatureSettings, nearest
from featurepress.specs import PreprocessSpec

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
    on_progress: OnProgress = ignore_progress,
) -> ModelCard:
    """Return the card of a model, downloaded and converted if it is not stored; see `pull`."""
    FeatureSettings(pooling=pooling)  # checks it
    if (card := find_other(name, size=size, alpha=alpha, weights=weights, on_progress=on_progress)) is not None:
        return card
    architecture = find_architecture(name)
    if weights == keras_applications.RANDOM:
        raise ModelError(
            "Random weights are for featurepress models bench --random only: their features are meaningless."
        )
    return keras_applications.load_card(
        architecture, size=size, alpha=alpha, weights=weights, pooling=pooling, on_progress=on_progress
    )


def find_other(
    name: str,
    *,
    size: int | None,
    alpha: float | None,
    weights: str | None,
    on_progress: OnProgress = ignore_progress,
) -> ModelCard | None:
    """Return the card of a model that is not of Keras Applications; None for other names."""
    FeatureSettings(size=size)  # checks the range
    for card in CARDS:
        if name in (card.name, *card.aliases):
            _refuse_options(card.name, size=size, alpha=alpha, weights=weights)
            return card
    if name.startswith(HUB):
        _refuse_options(name, alpha=alpha, weights=weights)
        return hub.load_card(name, size=size, on_progress=on_progress)
    if (named := store.find_name(name)) is not None:
        _refuse_options(name, size=size, alpha=alpha, weights=weights)
        return named
    if looks_like_a_path(name):
        _refuse_options(name, alpha=alpha, weights=weights)
        return files.load_card(name, Choices(size=size), on_progress=on_progress)
    return None


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
    architectures = keras_applications.architectures()
    by_plain = {keras_applications.plain(key): key for key in architectures}
    if (found := by_plain.get(keras_applications.plain(name))) is not None:
        return architectures[found]
    all_names = [*reserved_names(), *store.names()]
    raise ModelError(
        f"There is no model '{name}'{nearest(name.lower(), all_names)} "
        f"featurepress models list shows all {len(all_names)}; a file or hf:org/repo is possible too."
    )


def _refuse_options(name: str, **options: object) -> None:
    if refused := [f"--{option}" for option, value in options.items() if value is not None]:
        raise ModelError(f"The model {name} does not allow {' and '.join(refused)}. Leave it out.")


def reserved_names() -> list[str]:
    """Return the names of the bundled models and of Keras Applications."""
    return [*(n for card in CARDS for n in (card.name, *card.aliases)), *keras_applications.architectures()]
