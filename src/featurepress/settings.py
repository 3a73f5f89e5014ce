"""The settings of a run: one frozen dataclass a stage, with the constraints declared as data.

`Settings.from_options` takes the flat option names that the command and the Python functions share and sorts
them into the stages; the command builds its options from the same declarations, so that names, defaults and
help stand in one place.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import Field, asdict, dataclass, field, fields, replace
from typing import Any

from featurepress.errors import SettingError

DEFAULT_MODEL = "mobilenet_v2"
# Resident memory. Measured: 205 to 227 MiB a worker, 91 the driver; the rest is room for larger pictures and
# listings.
WORKER_BYTES = 300 * 1024**2
DRIVER_BYTES = 150 * 1024**2
MODEL_COPIES = 4  # that OpenVINO makes of the weights while it compiles; measured: 3.3


@dataclass(frozen=True)
class Constraint:
    """What a setting may hold, and how the command shows it.

    Parameters
    ----------
    kind : type
        ``int``, ``float``, ``bool``, ``str``, ``tuple`` for a number a channel or one for all, or ``list`` for any
        number of texts.
    help : str
        One line for people.
    choices : tuple of str
        The allowed values, where they are words.
    form : str
        A regular expression that other words than the choices may match; `form_name` is what errors call it.
    minimum, maximum : float or None
        The allowed range, both ends included.
    optional : bool
        Whether None is allowed.
    flag : str or None
        The command's option, where it is not the setting's name with dashes.
    identity : bool
        Whether the setting shapes the features or their layout: two runs that differ in it are two plans.
    """

    kind: type
    help: str
    choices: tuple[str, ...] = ()
    form: str = ""
    form_name: str = ""
    minimum: float | None = None
    maximum: float | None = None
    optional: bool = False
    flag: str | None = None
    identity: bool = True

    def called(self, name: str) -> str:
        """Give what errors call the setting `name`."""
        return f"The '{name}' setting" + (f" ({self.flag})" if self.flag else "")

    def check(self, name: str, value: object) -> None:
        """Raise SettingError unless `value` is allowed for the setting `name`."""
        if value is None and self.optional:
            return
        if self.choices:
            if value not in self.choices and not self._has_form(value):
                raise SettingError(
                    f"{self.called(name)} must be {_spoken_list(self.choices, self.form_name)}. "
                    f"Got {value!r}{nearest(str(value), self.choices)}"
                )
            return
        if not self._fits(value):
            raise SettingError(f"{self.called(name)} must be {self._allowed()}. Got {value!r}.")

    def _has_form(self, value: object) -> bool:
        return bool(self.form) and isinstance(value, str) and re.fullmatch(self.form, value) is not None

    def _fits(self, value: object) -> bool:
        if isinstance(value, bool) or self.kind is bool:
            return isinstance(value, bool) and self.kind is bool
        if self.kind is str:
            return isinstance(value, str) and value != ""
        if self.kind is list:
            return isinstance(value, tuple | list) and all(isinstance(one, str) and one for one in value)
        if self.kind is tuple:
            return isinstance(value, tuple | list) and len(value) in (1, 3) and all(map(_is_number, value))
        if not isinstance(value, int if self.kind is int else (int, float)):
            return False
        low = self.minimum is None or value >= self.minimum
        return low and (self.maximum is None or value <= self.maximum)

    def _allowed(self) -> str:
        if self.kind is tuple:
            return "one number, or three as 0.485,0.456,0.406"
        if self.kind is list:
            return "a list of texts"
        word = {int: "an integer", float: "a number", bool: "true or false", str: "a text"}[self.kind]
        if self.minimum is not None and self.maximum is not None:
            return f"{word} from {self.minimum:.15g} to {self.maximum:.15g}"
        return word if self.minimum is None else f"{word} of at least {self.minimum:.15g}"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _setting(default: Any, kind: type, help: str, **constraint: Any) -> Any:
    return field(default=default, metadata={"constraint": Constraint(kind, help, **constraint)})


def _spoken_list(words: tuple[str, ...], more: str = "") -> str:
    quoted = [f"'{word}'" for word in words] + ([more] if more else [])
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} or {quoted[-1]}"


def nearest(given: str, known: tuple[str, ...] | list[str]) -> str:
    """Give the end of an error sentence, which names what is near to `given` if anything is."""
    near = difflib.get_close_matches(given, known, n=3, cutoff=0.5)
    return f"; did you mean {_spoken_list(tuple(near))}?" if near else "."


class _Stage:
    """A group of settings that checks itself."""

    def __post_init__(self) -> None:
        for item in fields(self):  # type: ignore[arg-type]
            rule, value = item.metadata["constraint"], getattr(self, item.name)
            rule.check(item.name, value)
            if rule.kind is list:  # as JSON gives it; the dataclass is frozen
                object.__setattr__(self, item.name, tuple(value))


@dataclass(frozen=True)
class ListingSettings(_Stage):
    """Which images a run takes, and what it names them."""

    labels: str = _setting(
        "auto",
        str,
        "Where labels come from: 'parent' for the folder an image lies in, a PATTERN for the end of its path, as "
        "{split}/{label}/{name}, which gives a column for each name, 'none', or 'auto' for what an archive or "
        "--label-column brings along.",
        choices=("auto", "none", "parent"),
        form=r".*\{[^{}]*\}.*",
        form_name="a pattern such as '{split}/{label}/{name}'",
    )
    include: tuple[str, ...] = _setting(
        (), list, "Take only images whose name, or path with a '/' in the pattern, matches; may be given again."
    )
    exclude: tuple[str, ...] = _setting((), list, "Leave out what matches, likewise.")
    all_files: bool = _setting(
        False, bool, "List every regular file, not only names with an image suffix (dot files never)."
    )
    limit: int | None = _setting(
        None, int, "Press only the first N images of the listing.", minimum=1, optional=True
    )
    image_column: str | None = _setting(
        None, str, "Column of a table that holds the images (default: the only one that can).", optional=True
    )
    label_column: str | None = _setting(
        None,
        str,
        "Column of a table or CSV list that holds the labels; in an archive, the suffix beside the picture.",
        optional=True,
    )
    uri_column: str | None = _setting(
        None, str, "Column of a table or CSV list that holds paths and urls of images.", optional=True
    )
    anonymous: bool = _setting(
        False, bool, "Read buckets without credentials, as public ones can be.", identity=False
    )
    allow_private_hosts: bool = _setting(
        False, bool, "Fetch urls of private and link-local addresses, too.", identity=False
    )


@dataclass(frozen=True)
class ImageSettings(_Stage):
    """What one image may cost.

    The pixel limit is Pillow's: 178,956,970 pixels are 512 MiB of RGB. A file above the byte limit is not
    read at all. A read or a decoder that stays silent for the timeout is given up.
    """

    max_pixels: int = _setting(
        178_956_970, int, "Images with more pixels are failures, told from their header.", minimum=1
    )
    max_bytes: int = _setting(
        256 * 1024**2, int, "Files with more bytes are failures, not read (1GB, 500MiB work too).", minimum=1
    )
    timeout_seconds: float = _setting(
        60.0,
        float,
        "Seconds after which a read or a decoder that hangs is given up.",
        minimum=0.1,
        maximum=86_400,
        flag="--timeout",
        identity=False,
    )

    @property
    def silence_seconds(self) -> float:
        """Seconds after which a silent worker is taken for hung: a read that times out, and a decode as long."""
        return 2 * self.timeout_seconds + 30


@dataclass(frozen=True)
class FeatureSettings(_Stage):
    """What is computed from each image."""

    model: str = _setting(
        DEFAULT_MODEL,
        str,
        "The model: a name from 'featurepress models list', a model file, or hf:org/repo.",
        identity=False,  # what it is stands in the plan's backbone, whatever it was called
    )
    size: int | None = _setting(
        None,
        int,
        "Side of the model's input in pixels, where it leaves a choice (default: the model's own).",
        minimum=1,
        maximum=4096,
        optional=True,
        identity=False,
    )
    alpha: float | None = _setting(
        None, float, "Width of a MobileNet (default: 1).", minimum=0.01, maximum=10, optional=True, identity=False
    )
    weights: str | None = _setting(
        None, str, "Weights of a Keras model: 'imagenet' (default), or a .h5 file.", optional=True, identity=False
    )
    pooling: str = _setting(
        "avg",
        str,
        "What becomes of the model's last grid: its mean, all of it, or its maximum.",
        choices=("avg", "flatten", "max"),
    )
    precision: str = _setting(
        "auto",
        str,
        "Arithmetic: 'auto' takes bfloat16 where the CPU has it and a sample proves it faithful.",
        choices=("auto", "float32", "bfloat16"),
    )


def _choice(kind: type, help: str, **constraint: Any) -> Any:
    return _setting(None, kind, help, optional=True, **constraint)


@dataclass(frozen=True)
class Choices(_Stage):
    """What the user says of a model file; None where the file, or the custom of its kind, decides.

    `mean` and `scale` are of pixels from 0 to 1, as ``(pixel - mean) / scale``, in the order of the channels.
    """

    size: int | None = _choice(int, "Side of the input in pixels.", minimum=1, maximum=4096)
    output: str | None = _choice(
        str, "The tensor whose values are the features (models show --outputs lists them)."
    )
    resize: str | None = _choice(str, "Default: stretch.", choices=("stretch", "crop"))
    shortest_edge: int | None = _choice(
        int, "For crop: pixels of the shorter side before cutting (default: the size).", minimum=1
    )
    interpolation: str | None = _choice(
        str,
        "Default: bilinear.",
        choices=("bilinear", "bicubic", "area", "nearest", "box", "hamming", "lanczos"),
    )
    like: str | None = _choice(
        str,
        "Whose resizing (default: pillow for ONNX, OpenVINO and byte inputs).",
        choices=("pillow", "tensorflow"),
    )
    antialias: bool | None = _choice(
        bool, "With --like tensorflow only; off by default.", flag="--antialias/--no-antialias"
    )
    mode: str | None = _choice(
        str, "Keras's word for the normalisation; raw is 0..255.", choices=("tf", "caffe", "torch", "raw")
    )
    mean: tuple[float, ...] | None = _choice(tuple, "Of pixels from 0 to 1: a number, or three with commas.")
    scale: tuple[float, ...] | None = _choice(tuple, "What (pixel - mean) is divided by.")
    channel_order: str | None = _choice(str, "Default: RGB.", choices=("RGB", "BGR"))
    layout: str | None = _choice(str, "Where the shape does not tell.", choices=("NHWC", "NCHW"))


@dataclass(frozen=True)
class OutputSettings(_Stage):
    """How the features are laid out, and when a finished run counts as failed."""

    images_per_part: int | None = _setting(
        None,
        int,
        "Images a part (default: 128 at first, growing to 4,096 with the collection; half as many for flatten).",
        minimum=1,
        maximum=1_000_000,
        optional=True,
    )
    format: str = _setting(
        "parquet",
        str,
        "'csv' adds an export in csv/ after the last part.",
        choices=("parquet", "csv"),
    )
    parts: int = _setting(1, int, "Number of CSV files.", minimum=1, maximum=99_999)
    max_failures: float = _setting(
        0.1,
        float,
        "Share of failed images above which a finished run exits with 3.",
        minimum=0.0,
        maximum=1.0,
        identity=False,
    )


@dataclass(frozen=True)
class ResourceSettings(_Stage):
    """What the run may use of this machine; none of it changes a feature."""

    workers: int | None = _setting(
        None,
        int,
        "Worker processes (default: one a core).",
        minimum=1,
        maximum=1024,
        optional=True,
        identity=False,
    )
    memory_bytes: int | None = _setting(
        None,
        int,
        "Memory that all processes together may take; fewer workers are started if need be.",
        minimum=1,
        optional=True,
        flag="--memory",
        identity=False,
    )

    def workers_for(self, model: str, model_bytes: int) -> int:
        """Give the number of workers that cores, the user, and the memory that the model leaves allow.

        Raises SettingError if the memory is too little for one.
        """
        wanted = self.workers or available_cores()
        if self.memory_bytes is None:
            return wanted
        each = WORKER_BYTES + MODEL_COPIES * model_bytes
        if self.memory_bytes < DRIVER_BYTES + each:
            raise SettingError(
                f"The 'memory_bytes' setting (--memory) must be at least {DRIVER_BYTES + each}, for the driver and "
                f"one worker with the model {model}. Got {self.memory_bytes}."
            )
        return min(wanted, (self.memory_bytes - DRIVER_BYTES) // each)


SOLVERS = ("auto", "exact", "randomized")


@dataclass(frozen=True)
class ReductionSettings(_Stage):
    """How features are reduced to components."""

    n_components: int | None = _setting(
        None, int, "How many components are kept (default: 128).", minimum=1, optional=True, flag="--components"
    )
    variance: float | None = _setting(
        None,
        float,
        "Instead: as many as explain this share of the variance, such as 0.95.",
        minimum=0,
        maximum=1,
        optional=True,
    )
    whiten: bool = _setting(False, bool, "Give all components variance 1.")
    solver: str = _setting(
        "auto", str, "'randomized' is quicker for more than 4,000 features, which 'auto' knows.", choices=SOLVERS
    )
    random_state: int = _setting(0, int, "Seed of the randomized solver.", minimum=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.variance is not None and self.n_components is not None:
            raise SettingError("Give either 'n_components' (--components) or 'variance' (--variance), not both.")
        if self.variance is not None and self.solver == "randomized":
            raise SettingError("The 'variance' setting needs all variances, which only solver='exact' finds.")

    @classmethod
    def from_options(cls, **options: Any) -> ReductionSettings:
        """Take flat options; a name that there is not is refused."""
        names = [item.name for item in fields(cls)]
        for name in options:
            if name not in names:
                raise SettingError(f"There is no setting {name!r} of a reduction{nearest(name, names)}")
        return cls(**options)


@dataclass(frozen=True)
class ClassifierSettings(_Stage):
    """How features are classified."""

    kind: str = _setting(
        "logistic",
        str,
        "Multinomial logistic regression, k nearest neighbours, or the nearest mean of a class.",
        choices=("logistic", "knn", "centroid"),
        flag="--classifier",
    )
    regularization: float | None = _setting(
        None,
        float,
        "Of logistic: inverse strength, scikit-learn's C (default: by cross-validation).",
        minimum=1e-12,
        optional=True,
    )
    n_neighbors: int = _setting(5, int, "Of knn: how many neighbours vote.", minimum=1, flag="--neighbors")
    balanced: bool = _setting(False, bool, "Let rare classes weigh as much as frequent ones.")
    random_state: int = _setting(0, int, "Seed of what is drawn.", minimum=0)


@dataclass(frozen=True)
class Settings:
    """All settings of a run, by stage."""

    listing: ListingSettings = ListingSettings()
    images: ImageSettings = ImageSettings()
    features: FeatureSettings = FeatureSettings()
    output: OutputSettings = OutputSettings()
    resources: ResourceSettings = ResourceSettings()

    @classmethod
    def from_options(cls, **options: Any) -> Settings:
        """Sort flat options into the stages.

        Parameters
        ----------
        **options
            Any of the names that `declared` yields.

        Raises
        ------
        SettingError
            For an unknown name (the near ones are listed) or a value that is not allowed.
        """
        stages: dict[str, dict[str, Any]] = {}
        known = {item.name: stage for stage, item, _ in declared()}
        for name, value in options.items():
            if name not in known:
                raise SettingError(f"There is no setting '{name}'{nearest(name, list(known))}")
            stages.setdefault(known[name], {})[name] = value
        defaults = cls()
        return cls(**{stage: replace(getattr(defaults, stage), **given) for stage, given in stages.items()})

    def identity(self) -> dict[str, Any]:
        """Give the settings that make two plans different, by flat name."""
        values = self.to_json()
        return {item.name: values[stage][item.name] for stage, item, rule in declared() if rule.identity}

    def to_json(self) -> dict[str, dict[str, Any]]:
        """Give the settings as nested dictionaries of JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Mapping[str, Any]]) -> Settings:
        """Rebuild settings that `to_json` gave."""
        return cls.from_options(**{name: v for stage in values.values() for name, v in stage.items()})


def declared() -> Iterator[tuple[str, Field[Any], Constraint]]:
    """Yield each setting as (stage, dataclass field, constraint), in the order in which people read them."""
    for stage in fields(Settings):
        yield from _declared(stage.name, stage.default)


def declared_reduction() -> Iterator[tuple[str, Field[Any], Constraint]]:
    """Yield the settings of a reduction, likewise."""
    yield from _declared("reduction", ReductionSettings)


def declared_choices() -> Iterator[tuple[str, Field[Any], Constraint]]:
    """Yield what can be said of a model file, likewise."""
    yield from _declared("choices", Choices)


def _declared(name: str, stage: Any) -> Iterator[tuple[str, Field[Any], Constraint]]:
    for item in fields(stage):
        yield name, item, item.metadata["constraint"]


def available_cores() -> int:
    """Give the number of cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
