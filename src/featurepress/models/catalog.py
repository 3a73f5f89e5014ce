"""Model cards: what a model is, takes, gives, was trained on, may be used for, and how good it was measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from featurepress.errors import ModelError
from featurepress.records import BackboneSpec, PreprocessSpec
from featurepress.settings import nearest


@dataclass(frozen=True)
class ModelCard:
    """A model that can be asked for by name.

    Parameters
    ----------
    name : str
        Versioned name; what it stands for never changes.
    aliases : tuple of str
        Short names.
    architecture, training_data, licence, source, advice : str
        For people.
    n_parameters : int
        Number of weights.
    preprocess : PreprocessSpec
        What the pixels go through.
    output : str
        The tensor of the model file that is pooled.
    grid : tuple of int
        Height, width and channels of that tensor.
    file : str
        File name in the package's ``models/bundled``.
    weights_sha256 : str
        Content hash of the file.
    quality : mapping
        Measured accuracies: set -> (linear probe, 5 nearest neighbours).
    """

    name: str
    aliases: tuple[str, ...]
    architecture: str
    n_parameters: int
    preprocess: PreprocessSpec
    output: str
    grid: tuple[int, int, int]
    file: str
    weights_sha256: str
    training_data: str
    licence: str
    source: str
    advice: str
    quality: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def backbone(self, pooling: str) -> BackboneSpec:
        """Give the description of this model's backbone with a pooling."""
        return BackboneSpec(
            runtime="openvino",
            model=self.name,
            weights_sha256=self.weights_sha256,
            output=self.output,
            grid=self.grid,
            pooling=pooling,
            preprocess=self.preprocess,
        )


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


def find_card(name: str) -> ModelCard:
    """Give the card of a model.

    Raises
    ------
    ModelError
        There is no such model; the near names are listed.
    """
    names = {known: card for card in CARDS for known in (card.name, *card.aliases)}
    if name not in names:
        raise ModelError(
            f"There is no model '{name}'{nearest(name, list(names))} Known models: {', '.join(sorted(names))}."
        )
    return names[name]
