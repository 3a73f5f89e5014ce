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
    """A model that can be run."""

    name: str  # for --model
    architecture: str  # for display
    n_parameters: int
    preprocess: PreprocessSpec
    output: str  # the tensor of the model that is pooled
    grid: tuple[
        int, int, int
    ]  # height, width and channels of that tensor for one image; (1, 1, n) if it is a vector
    file: str  # key of the model in the store, 32 hexadecimal digits; or the name of a bundled file
    weights_sha256: str  # of the original weights file
    training_data: str
    licence: str
    source: str
    # "": the tensor is a grid, and any pooling is possible. "avg" or "max": the model itself pools so before its
    # last layer. "vector": there is no grid.
    pooled: str = ""
    batch: int | None = None  # the only batch size that the model accepts; None for any
    n_bytes: int = 0  # of the weights in memory; 0 if small
    aliases: tuple[str, ...] = ()
    advice: str = ""  # for which purposes to use it
    notes: tuple[str, ...] = ()  # what was assumed about the model
    quality: Mapping[str, tuple[float, float]] = field(default_factory=dict)  # set -> (linear probe, 5 neighbours)
    origin: Mapping[str, Any] = field(default_factory=dict)  # enough to convert the model again
    versions: Mapping[str, str] = field(default_factory=dict)  # of the libraries that converted it

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
        """Return the fields as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ModelCard:
        """Build a card from the result of `to_json`."""
        lists = {name: tuple(values[name]) for name in ("grid", "aliases", "notes")}
        quality = {name: tuple(pair) for name, pair in values["quality"].items()}
        return cls(
            **{**values, **lists, "quality": quality, "preprocess": PreprocessSpec.from_json(values["preprocess"])}
        )
