"""The values that stages exchange: references, failures, specs and receipts. They are hashable and picklable."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from featurepress.errors import SettingError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Pixels = npt.NDArray[np.uint8]  # (H, W, 3) RGB, 0..255
    Features = npt.NDArray[np.float32]  # (n_samples, n_features)


class FrozenMapping(Mapping[str, Any]):
    """An immutable, hashable mapping of JSON values; lists become tuples.

    Parameters
    ----------
    values : mapping
        JSON values; copied. The order is kept, but ignored in comparisons.
    """

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, Any] | None = None) -> None:
        self._values = {name: _frozen(value) for name, value in (values or {}).items()}

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mapping) and self._values == FrozenMapping(other)._values

    def __hash__(self) -> int:
        return hash(frozenset(self._values.items()))

    def __repr__(self) -> str:
        return repr(self._values)

    def to_json(self) -> dict[str, Any]:
        """Return the values as plain dictionaries and lists."""
        return {name: thawed(value) for name, value in self._values.items()}


def _frozen(value: Any) -> Any:
    if isinstance(value, Mapping):
        return value if isinstance(value, FrozenMapping) else FrozenMapping(value)
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value


def thawed(value: Any) -> Any:
    """Return a frozen value as plain dictionaries and lists."""
    if isinstance(value, FrozenMapping):
        return value.to_json()
    return [thawed(item) for item in value] if isinstance(value, tuple) else value


def freeze_mappings(spec: Any) -> None:
    """Freeze the mappings of a new frozen dataclass, so that it has a hash; for its `__post_init__`."""
    for item in fields(spec):
        value = getattr(spec, item.name)
        if isinstance(value, Mapping):
            object.__setattr__(spec, item.name, _frozen(value))


class ImageRef(NamedTuple):
    """One image of a listing: enough to read it, and to detect a change.

    `uri` is spelled as in the user's source, and unique in a run: bytes that are not UTF-8, and a backslash that
    looks like the escape of one, are shown as escapes.
    """

    uri: str
    source: int  # index of the source in the plan
    size: int  # bytes, as listed
    version: str  # changes whenever the bytes may have changed: modification time on disk, etag in a bucket
    fields: tuple[str | None, ...] = ()  # values of the plan's `field_names`, such as the label
    key: bytes | None = None  # the source's own name of the image, if it differs from the UTF-8 bytes of `uri`
    problem: str | None = None  # why the listing has found that the image cannot be read; it becomes a failure

    @property
    def order(self) -> bytes:
        """The bytes by which a listing is sorted."""
        return self.key if self.key is not None else self.uri.encode()

    @property
    def container(self) -> bytes:
        """The archive or table that holds the image, whose key ends in ``#`` and 16 digits; b"" for a file."""
        key = self.key or b""
        return key[:-17] if key[-17:-16] == b"#" and key[-16:].isdigit() else b""


class Failure(NamedTuple):
    """One image that could not be embedded; `reason` is ``kind`` or ``kind: detail``."""

    uri: str
    stage: str
    reason: str

    @property
    def kind(self) -> str:
        """Stage and reason without the detail, for counting."""
        return f"{self.stage}: {self.reason.partition(':')[0]}"


@dataclass(frozen=True)
class SourceSpec:
    """A small description from which any process can open a source."""

    kind: str  # one of `featurepress.sources.KINDS`
    location: str  # as the user has written it
    base: str = ""  # folder to which a relative location refers; "/" for an absolute one
    options: Mapping[str, Any] = field(default_factory=FrozenMapping)  # JSON values for the implementation

    def __post_init__(self) -> None:
        freeze_mappings(self)

    def __str__(self) -> str:
        """Return the location, with the base if it matters, for messages."""
        return self.location if self.base in ("", "/") else f"{self.location} (from {self.base})"

    def to_json(self) -> dict[str, Any]:
        """Return the description as JSON values."""
        return {**asdict(self), "options": thawed(self.options)}


# dtype of the model's input -> the interpolations that are possible.
INTERPOLATIONS = {
    "uint8": ("area-or-linear", "nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"),
    "float32": ("bilinear", "bicubic", "area"),
}


@dataclass(frozen=True)
class PreprocessSpec:
    """How pixels become the model's input, precisely enough to compare implementations.

    The input is ``(level - mean) / scale``, with levels from 0 to 255. SettingError if a value is not allowed, or
    does not fit the others.
    """

    height: int  # of the input, in pixels
    width: int
    # stretch: both sides are resized, the aspect ratio is not kept. crop: the shorter side is resized to
    # `shortest_edge`, at least the larger of height and width; the aspect ratio is kept, and the middle is cut out.
    resize: str = "stretch"
    shortest_edge: int | None = None
    # One of `INTERPOLATIONS`. area-or-linear: if the shorter side of the image is longer than that of the target,
    # each target pixel is the mean of the source area below it; else bilinear between pixel centres.
    interpolation: str = "area-or-linear"
    antialias: bool = True  # whether the kernel grows as the image shrinks; for uint8 and for area it always does
    dtype: str = (
        "uint8"  # rounded to whole levels before normalisation, as in Pillow; float32: not, as in TensorFlow
    )
    mean: tuple[float, ...] = (127.5,)  # for all channels, or one per channel in the order of `channel_order`
    scale: tuple[float, ...] = (127.5,)
    channel_order: str = "RGB"  # or BGR

    def __post_init__(self) -> None:
        _require("resize", self.resize, ("stretch", "crop"))
        _require("dtype", self.dtype, tuple(INTERPOLATIONS))
        _require("interpolation", self.interpolation, INTERPOLATIONS[self.dtype], f" for {self.dtype}")
        _require("channel_order", self.channel_order, ("RGB", "BGR"))
        _require("antialias", self.antialias, (True,) if self.dtype == "uint8" else (True, False))
        if self.interpolation == "area-or-linear":
            _require("resize", self.resize, ("stretch",), " for area-or-linear")
        if self.interpolation == "area":
            _require("antialias", self.antialias, (True,), " for area")
        largest = max(self.height, self.width)
        if (self.resize == "crop") != (self.shortest_edge is not None) or (self.shortest_edge or largest) < largest:
            raise SettingError(
                f"The 'shortest_edge' of the preprocessing must be at least {largest} for 'crop', and None for "
                f"'stretch'. Got {self.shortest_edge} for '{self.resize}'."
            )
        for name, values in (("mean", self.mean), ("scale", self.scale)):
            if len(values) not in (1, 3) or (name == "scale" and 0 in values):
                raise SettingError(
                    f"The '{name}' of the preprocessing must be one number or three"
                    f"{', none of them 0' if name == 'scale' else ''}. Got {values}."
                )

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> PreprocessSpec:
        """Return the description with these JSON values."""
        return cls(**{**values, "mean": tuple(values["mean"]), "scale": tuple(values["scale"])})

    def applied(self) -> dict[str, Any]:
        """Return the fields that have an effect; specs with equal ones are equivalent."""
        values = asdict(self)
        if self.shortest_edge is None:
            del values["shortest_edge"]
        if self.dtype == "uint8" or self.interpolation == "area":
            del values["antialias"]
        return values

    def __str__(self) -> str:
        """Return the description as one line."""
        kept = f", the shorter side to {self.shortest_edge}" if self.shortest_edge is not None else ""
        edges = " with antialias" if self.dtype == "float32" and self.antialias else ""
        return (
            f"{self.channel_order} {self.width}x{self.height}, {self.resize}{kept}, {self.interpolation}{edges} in "
            f"{self.dtype}, (level - {_numbers(self.mean)}) / {_numbers(self.scale)}"
        )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings; ``height`` in ``preprocess`` becomes ``preprocess height``."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{name} ")
        else:
            found[f"{prefix}{name}"] = value
    return found


def _shortened(value: object) -> str:
    """Return the repr of a value; of a hash, only the beginning."""
    return f"'{value[:12]}…'" if isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) else repr(value)


def _require(name: str, value: object, allowed: tuple[Any, ...], when: str = "") -> None:
    if value not in allowed:
        listed = ", ".join(map(repr, allowed))
        raise SettingError(f"The '{name}' of the preprocessing must be one of {listed}{when}. Got {value!r}.")


def _numbers(values: tuple[float, ...]) -> str:
    text = ", ".join(f"{value:g}" for value in values)
    return text if len(values) == 1 else f"({text})"


@dataclass(frozen=True)
class BackboneSpec:
    """A small description from which any process can load a backbone.

    `options` must not change the feature space. `projection` is that of a reduced set, ``sha256`` and
    ``n_components``; empty if the features are not projected.
    """

    runtime: str  # one of `featurepress.models.backbone.RUNTIMES`
    model: str  # versioned name of the model's card
    weights_sha256: str  # of the model file
    output: str  # the tensor that is pooled
    grid: tuple[int, int, int]  # (height, width, channels) of that tensor for one image
    pooling: str  # avg, flatten or max
    preprocess: PreprocessSpec
    file: str = ""  # name of the model's file in the store of models
    options: Mapping[str, Any] = field(default_factory=FrozenMapping)  # JSON values for the implementation
    projection: Mapping[str, Any] = field(default_factory=FrozenMapping)

    def __post_init__(self) -> None:
        freeze_mappings(self)

    @property
    def n_features(self) -> int:
        """Number of features of one image."""
        if self.projection:
            return int(self.projection["n_components"])
        height, width, channels = self.grid
        return height * width * channels if self.pooling == "flatten" else channels

    @property
    def feature_space(self) -> dict[str, Any]:
        """The fields that two feature sets must share to be comparable."""
        return {
            "weights_sha256": self.weights_sha256,
            "output": self.output,
            "preprocess": self.preprocess.applied(),
            "pooling": self.pooling,
            **({"projection": self.projection["sha256"]} if self.projection else {}),
        }

    @property
    def unprojected(self) -> BackboneSpec:
        """The same backbone without the projection."""
        return replace(self, projection={})

    def differences(self, other: BackboneSpec) -> list[str]:
        """Return the differences between two feature spaces, as lines ``name: value, not other value``."""
        if self.fingerprint == other.fingerprint:
            return []
        mine, theirs = (_flat({"model": spec.model, **spec.feature_space}) for spec in (self, other))
        return [
            f"{name}: {_shortened(mine.get(name))}, not {_shortened(theirs.get(name))}"
            for name in {**mine, **theirs}
            if mine.get(name) != theirs.get(name)
        ]

    @property
    def fingerprint(self) -> str:
        """Hash of the feature space: 16 hexadecimal digits."""
        text = json.dumps(self.feature_space, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        """Return the description as JSON values."""
        values = {**asdict(self), "options": thawed(self.options), "projection": thawed(self.projection)}
        return values if self.projection else {name: values[name] for name in values if name != "projection"}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> BackboneSpec:
        """Return the description that `to_json` has returned as JSON."""
        preprocess = PreprocessSpec.from_json(values["preprocess"])
        return cls(**{**values, "grid": tuple(values["grid"]), "preprocess": preprocess})


@dataclass(frozen=True)
class Receipt:
    """The record of a finished shard: the number of its images, and where and how they were embedded.

    `embedded` includes the rows that an update has `carried` over without running the model.
    """

    shard: int
    generation: int
    listed: int
    embedded: int
    failed: int
    failed_by_kind: Mapping[str, int]
    bytes_read: int
    seconds: float
    precision: str
    cpu: str
    host: str
    versions: Mapping[str, str]
    carried: int = 0

    def __post_init__(self) -> None:
        freeze_mappings(self)

    @property
    def balances(self) -> bool:
        """Whether every listed image is either a row or a failure."""
        return self.listed == self.embedded + self.failed

    def to_json(self) -> dict[str, Any]:
        """Return the receipt as JSON values."""
        return {name: thawed(value) for name, value in asdict(self).items()}
