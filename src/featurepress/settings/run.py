"""The settings of a run: one frozen dataclass a stage, with the constraints declared as data.

`Settings.from_options` takes the flat option names that the command and the Python functions share and sorts
them into the stages; the command builds its options from the same declarations, so that names, defaults and
help stand in one place.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import Field, asdict, dataclass, fields, replace
from typing import Any

from featurepress.errors import SettingError
from featurepress.settings.constraint import Constraint, Stage, declared_of, nearest, setting

DEFAULT_MODEL = "mobilenet_v2"
# Resident memory. Measured: 205 to 227 MiB a worker, 91 the driver; the rest is room for larger pictures and
# listings.
WORKER_BYTES = 300 * 1024**2
DRIVER_BYTES = 150 * 1024**2
MODEL_COPIES = 4  # that OpenVINO makes of the weights while it compiles; measured: 3.3


@dataclass(frozen=True)
class ListingSettings(Stage):
    """Which images a run takes, and what it names them."""

    labels: str = setting(
        "auto",
        str,
        "Where labels come from: 'parent' for the folder an image lies in, a PATTERN for the end of its path, as "
        "{split}/{label}/{name}, which gives a column for each name, 'none', or 'auto' for what an archive or "
        "--label-column provides.",
        choices=("auto", "none", "parent"),
        form=r".*\{[^{}]*\}.*",
        form_name="a pattern such as '{split}/{label}/{name}'",
    )
    include: tuple[str, ...] = setting(
        (), list, "Take only images whose name, or path with a '/' in the pattern, matches; may be given again."
    )
    exclude: tuple[str, ...] = setting((), list, "Leave out what matches, likewise.")
    all_files: bool = setting(
        False, bool, "List every regular file, not only names with an image suffix (dot files never)."
    )
    limit: int | None = setting(
        None, int, "Embed only the first N images of the listing.", minimum=1, optional=True
    )
    image_column: str | None = setting(
        None, str, "Column of a table that holds the images (default: the only one that can).", optional=True
    )
    label_column: str | None = setting(
        None,
        str,
        "Column of a table or CSV list that holds the labels; in an archive, the suffix beside the picture.",
        optional=True,
    )
    uri_column: str | None = setting(
        None, str, "Column of a table or CSV list that holds paths and urls of images.", optional=True
    )
    anonymous: bool = setting(
        False, bool, "Read buckets without credentials, as public ones can be.", identity=False
    )
    allow_private_hosts: bool = setting(
        False, bool, "Fetch urls of private and link-local addresses, too.", identity=False
    )


@dataclass(frozen=True)
class ImageSettings(Stage):
    """What one image may cost.

    The pixel limit is Pillow's: 178,956,970 pixels are 512 MiB of RGB. A file above the byte limit is not
    read at all. A read or a decoder that stays silent for the timeout is given up.
    """

    max_pixels: int = setting(
        178_956_970, int, "Images with more pixels are failures, detected from their header.", minimum=1
    )
    max_bytes: int = setting(
        256 * 1024**2, int, "Files with more bytes are failures, not read (1GB, 500MiB work too).", minimum=1
    )
    timeout_seconds: float = setting(
        60.0,
        float,
        "Seconds after which a read or a decoder that hangs is given up.",
        minimum=0.1,
        maximum=86_400,
        identity=False,
    )

    @property
    def silence_seconds(self) -> float:
        """Seconds after which a silent worker is taken for hung: a read that times out, and a decode as long."""
        return 2 * self.timeout_seconds + 30


@dataclass(frozen=True)
class FeatureSettings(Stage):
    """What is computed from each image."""

    model: str = setting(
        DEFAULT_MODEL,
        str,
        "The model: a name from 'featurepress models list', a model file, or hf:org/repo.",
        identity=False,  # what it is stands in the plan's backbone, whatever it was called
    )
    size: int | None = setting(
        None,
        int,
        "Side of the model's input in pixels, where it leaves a choice (default: the model's own).",
        minimum=1,
        maximum=4096,
        optional=True,
        identity=False,
    )
    alpha: float | None = setting(
        None, float, "Width of a MobileNet (default: 1).", minimum=0.01, maximum=10, optional=True, identity=False
    )
    weights: str | None = setting(
        None, str, "Weights of a Keras model: 'imagenet' (default), or a .h5 file.", optional=True, identity=False
    )
    pooling: str = setting(
        "avg",
        str,
        "What becomes of the model's last grid: its mean, all of it, or its maximum.",
        choices=("avg", "flatten", "max"),
    )
    precision: str = setting(
        "auto",
        str,
        "Arithmetic: 'auto' takes bfloat16 where the CPU has it and a sample proves it faithful.",
        choices=("auto", "float32", "bfloat16"),
    )


@dataclass(frozen=True)
class OutputSettings(Stage):
    """How the features are laid out, and when a finished run counts as failed."""

    images_per_part: int | None = setting(
        None,
        int,
        "Images a part (default: 128 at first, growing to 4,096 with the collection; half as many for flatten).",
        minimum=1,
        maximum=1_000_000,
        optional=True,
    )
    format: str = setting(
        "parquet",
        str,
        "'csv' adds an export in csv/ after the last part.",
        choices=("parquet", "csv"),
    )
    parts: int = setting(1, int, "Number of CSV files.", minimum=1, maximum=99_999)
    max_failures: float = setting(
        0.1,
        float,
        "Share of failed images above which a finished run exits with 3.",
        minimum=0.0,
        maximum=1.0,
        identity=False,
    )


@dataclass(frozen=True)
class ResourceSettings(Stage):
    """What the run may use of this machine; none of it changes a feature."""

    workers: int | None = setting(
        None,
        int,
        "Worker processes (default: one a core).",
        minimum=1,
        maximum=1024,
        optional=True,
        identity=False,
    )
    memory_bytes: int | None = setting(
        None,
        int,
        "Memory that all processes together may take; fewer workers are started if need be.",
        minimum=1,
        optional=True,
        identity=False,
    )

    def workers_for(self, model: str, model_bytes: int) -> int:
        """Return the number of workers that cores, the user, and the memory that the model leaves allow.

        Raises SettingError if the memory is too little for one.
        """
        wanted = self.workers or available_cores()
        if self.memory_bytes is None:
            return wanted
        each = WORKER_BYTES + MODEL_COPIES * model_bytes
        if self.memory_bytes < DRIVER_BYTES + each:
            raise SettingError(
                f"The 'memory_bytes' setting must be at least {DRIVER_BYTES + each}, for the driver and "
                f"one worker with the model {model}. Got {self.memory_bytes}."
            )
        return min(wanted, (self.memory_bytes - DRIVER_BYTES) // each)


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
        """Return the settings that make two plans different, by flat name."""
        values = self.to_json()
        return {item.name: values[stage][item.name] for stage, item, rule in declared() if rule.identity}

    def to_json(self) -> dict[str, dict[str, Any]]:
        """Return the settings as nested dictionaries of JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Mapping[str, Any]]) -> Settings:
        """Rebuild settings that `to_json` gave."""
        return cls.from_options(**{name: v for stage in values.values() for name, v in stage.items()})


def declared() -> Iterator[tuple[str, Field[Any], Constraint]]:
    """Yield each setting as (stage, dataclass field, constraint), in the order in which people read them."""
    for stage in fields(Settings):
        yield from declared_of(stage.name, stage.default)


# What may be asked of the pictures where it is decided already what is computed from them.
IMAGE_SETTINGS = frozenset(
    item.name
    for stage, item, _ in declared()
    if stage in ("listing", "images", "resources") or item.name in ("images_per_part", "max_failures")
)


def available_cores() -> int:
    """Return the number of cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
