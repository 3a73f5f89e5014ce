"""What is known of a model: what it is, takes and gives, what it was trained on, and how good it was measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from featurepress.errors import ModelError
from featurepress.specs import BackboneSpec, PreprocessSpec

# Keras's words for (mean, scale, channel order) of levels from 0 to 255; `raw` leaves them as they are.
KERAS_MODES: dict[str, tuple[tuple[float, ...], tuple[float, ...], str]] = {
    "tf": ((127.5,), (127.5,), "RGB"),
    "caffe": ((103.939, 116.779, 123.68), (1.0,), "BGR"),
    "torch": ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375), "RGB"),
    "raw": ((0.0,), (1.0,), "RGB"),
}


@dataclass(frozen=True)
class ModelCard:
    """A model that is ready to run.

    Parameters
    ----------
    name : str
        What people call it.
    architecture, training_data, licence, source : str
        For people.
    n_parameters : int
        Number of weights.
    preprocess : PreprocessSpec
        What the pixels go through.
    output : str
        The tensor of the model that is pooled.
    grid : tuple of int
        Height, width and channels of that tensor for one image; (1, 1, n) where the model pools by itself.
    file : str
        Where the store has the model: a key of 32 hexadecimal digits, or the name of a bundled file.
    weights_sha256 : str
        Content hash of the weights, as they came.
    pooled : str
        ``""``: the tensor is a grid, to be pooled in any way. ``avg`` or ``max``: the model has pooled it so, as
        some do before their last layer. ``vector``: there is no grid.
    batch : int or None
        The only number of images that it takes at a time, if there is one.
    n_bytes : int
        Size of the weights in memory, where that is worth counting.
    aliases : tuple of str
        Short names.
    advice, notes : str
        What to know before using it; what was assumed of it.
    quality : mapping
        Measured accuracies: set -> (linear probe, 5 nearest neighbours).
    origin : mapping
        From what the file was made, enough to make it again.
    versions : mapping
        Of the libraries that made it.
    """

    name: str
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
    pooled: str = ""
    batch: int | None = None
    n_bytes: int = 0
    aliases: tuple[str, ...] = ()
    advice: str = ""
    notes: tuple[str, ...] = ()
    quality: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    origin: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    def backbone(self, pooling: str) -> BackboneSpec:
        """Give the description of this model's backbone with a pooling.

        Raises
        ------
        ModelError
            The model's output cannot be pooled so.
        """
        allowed = {"": ("avg", "flatten", "max"), "vector": ("avg",)}.get(self.pooled, (self.pooled,))
        if pooling not in allowed:
            raise ModelError(
                f"The output '{self.output}' of {self.name} is a vector of {self.grid[2]:,} numbers, with no grid "
                f"left to take the '{pooling}' of. Leave out --pooling, or add the model with another --output."
            )
        options = {} if self.batch is None else {"batch": self.batch}
        if self.n_bytes:
            options["model_bytes"] = self.n_bytes
        return BackboneSpec(
            runtime="openvino",
            model=self.name,
            weights_sha256=self.weights_sha256,
            output=self.output,
            grid=self.grid,
            pooling=pooling,
            preprocess=self.preprocess,
            file=self.file,
            options=options,
        )

    def to_json(self) -> dict[str, Any]:
        """Give the card as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ModelCard:
        """Rebuild a card that `to_json` gave."""
        lists = {name: tuple(values[name]) for name in ("grid", "aliases", "notes")}
        quality = {name: tuple(pair) for name, pair in values["quality"].items()}
        return cls(
            **{**values, **lists, "quality": quality, "preprocess": PreprocessSpec.from_json(values["preprocess"])}
        )
