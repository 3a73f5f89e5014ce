"""The card of a model: its input and output, its training data, its licence and its measured quality."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from featurepress.errors import ModelError
from featurepress.specs import BackboneSpec, PreprocessSpec

# Keras's names for (mean, scale, channel order) of levels from 0 to 255; `raw` leaves them as they are.
KERAS_MODES: dict[str, tuple[tuple[float, ...], tuple[float, ...], str]] = {
    "tf": ((127.5,), (127.5,), "RGB"),
    "caffe": ((103.939, 116.779, 123.68), (1.0,), "BGR"),
    "torch": ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375), "RGB"),
    "raw": ((0.0,), (1.0,), "RGB"),
}


@dataclass(frozen=True)
class ModelCard:
    """A model that can be run.

    Parameters
    ----------
    name : str
        Name for `--model`.
    architecture, training_data, licence, source : str
        Text for display.
    n_parameters : int
        Number of weights.
    preprocess : PreprocessSpec
        Resizing and normalisation.
    output : str
        The tensor of the model that is pooled.
    grid : tuple of int
        Height, width and channels of that tensor for one image; (1, 1, n) if the model pools.
    file : str
        Key of the model in the store, 32 hexadecimal digits; or the name of a bundled file.
    weights_sha256 : str
        Hash of the original weights file.
    pooled : str
        ``""``: the tensor is a grid, and any pooling is possible. ``avg`` or ``max``: the model itself pools
        so before its last layer. ``vector``: there is no grid.
    batch : int or None
        The only batch size that it accepts; None for any.
    n_bytes : int
        Size of the weights in memory; 0 if small.
    aliases : tuple of str
        Short names.
    advice, notes : str
        What to know before using the model; what was assumed about it.
    quality : mapping
        Measured accuracies: set -> (linear probe, 5 nearest neighbours).
    origin : mapping
        What the model was converted from, enough to convert it again.
    versions : mapping
        Versions of the libraries that converted it.
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
        """Return the specification of this model with a pooling.

        Raises
        ------
        ModelError
            The output has no grid to pool.
        """
        allowed = {"": ("avg", "flatten", "max"), "vector": ("avg",)}.get(self.pooled, (self.pooled,))
        if pooling not in allowed:
            raise ModelError(
                f"The output '{self.output}' of {self.name} is a vector of {self.grid[2]:,} numbers: the "
                f"pooling '{pooling}' needs a grid. Leave out --pooling, or add the model with another --output."
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
        """Return the card as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ModelCard:
        """Build a card from the result of `to_json`."""
        lists = {name: tuple(values[name]) for name in ("grid", "aliases", "notes")}
        quality = {name: tuple(pair) for name, pair in values["quality"].items()}
        return cls(
            **{**values, **lists, "quality": quality, "preprocess": PreprocessSpec.from_json(values["preprocess"])}
        )
