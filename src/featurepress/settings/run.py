"""The settings of a run, one frozen dataclass per stage; the command builds its options from these declarations."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import Field, asdict, dataclass, fields
from typing import Any

from featurepress.errors import SettingError
from featurepress.settings.constraint import (
    Constraint,
    Stage,
    declared_of,
    optional_setting,
    setting,
    sorted_options,
)

DEFAULT_MODEL = "mobilenet_v2"
# Resident memory. Measured: 205 to 227 MiB per worker, 91 for the driver; larger images and listings take more.
WORKER_BYTES = 300 * 1024**2
DRIVER_BYTES = 150 * 1024**2
MODEL_COPIES = 4  # that OpenVINO makes of the weights while it compiles; measured: 3.3


@dataclass(frozen=True)
class ListingSettings(Stage):
    """Which images a run reads, and the fields that it takes from their names."""

    labels: str = setting(
        "auto",
        str,
        "Source of the labels: 'parent' is the name of the image's folder; a PATTERN as {split}/{label}/{name} "
        "is matched against the end of the path and adds a column per name; 'auto' is what an archive or "
        "--label-column provides; 'none' adds no labels.",
        choices=("auto", "none", "parent"),
        form=r".*\{[^{}]*\}.*",
        form_name="a pattern such as '{split}/{label}/{name}'",
    )
    include: tuple[str, ...] = setting(
        (), list, "Read only images whose name, or path if the pattern has a '/', matches. Repeatable."
    )
    exclude: tuple[str, ...] = setting((), list, "Skip images that match, by the same rule. Repeatable.")
    all_files: bool = setting(
        False, bool, "List every regular file except dot files, not only names with an image suffix."
    )
    limit: int | None = optional_setting(int, "Embed only the first N images of the listing.", minimum=1)
    image_column: str | None = optional_setting(
        str, "Column of a table that holds the images (default: the only possible one)."
    )
    label_column: str | None = optional_setting(
        str, "Column of a table or CSV list that holds the labels; in an archive, the suffix of the label files."
    )
    uri_column: str | None = optional_setting(
        str, "Column of a table or CSV list that holds paths or urls of images."
    )
    anonymous: bool = setting(False, bool, "Read public buckets without credentials.", identity=False)
    allow_private_hosts: bool = setting(
        False, bool, "Fetch urls of private and link-local addresses too.", identity=False
    )


@dataclass(frozen=True)
class ImageSettings(Stage):
    """Limits for one image. The pixel limit is Pillow's: 178,956,970 pixels are 512 MiB of RGB."""

    max_pixels: int = setting(
        178_956_970, int, "Images with more pixels become failures; their pixels are not decoded.", minimum=1
    )
    max_bytes: int = setting(
        256 * 1024**2, int, "Files with more bytes become failures and are not read (1GB, 500MiB).", minimum=1
    )
    timeout_seconds: float = setting(
        60.0,
        float,
        "Seconds after which a read or a decoder that hangs is stopped.",
        minimum=0.1,
        maximum=86_400,
        identity=False,
    )

    @property
    def silence_seconds(self) -> float:
        """Seconds without a message after which a worker counts as hung: a read and a decode, each at its limit."""
        return 2 * self.timeout_seconds + 30


@dataclass(frozen=True)
class FeatureSettings(Stage):
    """What is computed from each image."""

    model: str = setting(
        DEFAULT_MODEL,
        str,
        "A name from 'featurepress models list', a model file, or hf:org/repo.",
        identity=False,  # the plan's backbone identifies the model, under any name
    )
    size: int | None = optional_setting(
        int,
        "Side of the model's input in pixels, if the model leaves a choice (default: the model's).",
        minimum=1,
        maximum=4096,
        identity=False,
    )
    alpha: float | None = optional_setting(
        float, "Width of a MobileNet (default: 1).", minimum=0.01, maximum=10, identity=False
    )
    weights: str | None = optional_setting(
        str, "Weights of a Keras model: 'imagenet' (default), or a .h5 file.", identity=False
    )
    pooling: str = setting(
        "avg",
        str,
        "What becomes of the model's last feature map: its mean, all of its values, or its maximum.",
        choices=("avg", "flatten", "max"),
    )
    precision: str = setting(
        "auto",
        str,
        "Arithmetic. 'auto' uses bfloat16 if the CPU supports it and it agrees with float32 on a sample of images.",
        choices=("auto", "float32", "bfloat16"),
    )


@dataclass(frozen=True)
class OutputSettings(Stage):
    """How the features are written, and when a finished run counts as failed."""

    images_per_part: int | None = optional_setting(
        int,
        "Images per part (default: grows from 128 to 4,096 with the collection; for flatten, half as many).",
        minimum=1,
        maximum=1_000_000,
    )
    format: str = setting(
        "parquet", str, "'csv' also exports the features to csv/ after the last part.", choices=("parquet", "csv")
    )
    parts: int = setting(1, int, "Number of CSV files.", minimum=1, maximum=99_999)
    max_failures: float = setting(
        0.1,
        float,
        "Share of failed images above which a finished run exits with code 3.",
        minimum=0.0,
        maximum=1.0,
        identity=False,
    )


@dataclass(frozen=True)
class ResourceSettings(Stage):
    """What the run may use of this machine; it changes no feature."""

    workers: int | None = optional_setting(
        int, "Number of worker processes (default: one per core).", minimum=1, maximum=1024, identity=False
    )
    memory_bytes: int | None = optional_setting(
        int,
        "Memory for all processes together; fewer workers are started if it is too little.",
        minimum=1,
        identity=False,
    )

    def workers_for(self, model: str, model_bytes: int) -> int:
        """Return the number of workers for a model. SettingError if the memory is too little for one."""
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
class EngineSettings(Stage):
    """Where a command runs; in Python an `Engine` is passed instead."""

    engine: str = setting(
        "local",
        str,
        "Worker processes on this machine, a Spark cluster, or a Ray cluster.",
        choices=("local", "spark", "ray"),
    )
    master: str | None = optional_setting(
        str, "Spark: local[4], spark://host:7077, yarn, k8s://…, sc://host:15002 (default: spark-submit's)."
    )
    spark_conf: tuple[str, ...] = setting((), list, "Spark: a configuration property. Repeatable.")
    address: str | None = optional_setting(
        str, "Ray: auto, host:6379, ray://host:10001 (default: RAY_ADDRESS, or this machine)."
    )


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
        """Sort flat options into the stages; see `sorted_options`."""
        return cls(**sorted_options(RUN_STAGES, options))

    def identity(self) -> dict[str, Any]:
        """Return the settings that make two plans different, by flat name."""
        values = self.to_json()
        return {item.name: values[stage][item.name] for stage, item, rule in declared() if rule.identity}

    def to_json(self) -> dict[str, dict[str, Any]]:
        """Return the settings as nested dictionaries of JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Mapping[str, Any]]) -> Settings:
        """Return the settings that `to_json` has returned as JSON."""
        return cls.from_options(**{name: value for stage in values.values() for name, value in stage.items()})


RUN_STAGES: dict[str, type[Stage]] = {
    item.name: type(item.default)  # type: ignore[misc]
    for item in fields(Settings)
}


def declared() -> Iterator[tuple[str, Field[Any], Constraint]]:
    """Yield each setting of a run as (name of the stage, dataclass field, constraint), in order."""
    for name, stage in RUN_STAGES.items():
        yield from declared_of(name, stage)


# The settings that remain free when the model is fixed, as in `predict`.
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
