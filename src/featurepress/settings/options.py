"""The options of each public function as typed dictionaries; a test compares them with the settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypedDict

Pooling = Literal["avg", "flatten", "max"]
Precision = Literal["auto", "float32", "bfloat16"]
FileFormat = Literal["parquet", "csv"]


class ResumeOptions(TypedDict, total=False):
    """Options of `resume` and `update`; they change no feature."""

    anonymous: bool
    allow_private_hosts: bool
    timeout_seconds: float
    max_failures: float
    workers: int | None
    memory_bytes: int | None


class RetryOptions(ResumeOptions, total=False):
    """Options of `retry`: also the limits for one image."""

    max_pixels: int
    max_bytes: int


class ImageOptions(RetryOptions, total=False):
    """Options of `predict` for images: which are read, and their limits."""

    labels: str
    include: Sequence[str]
    exclude: Sequence[str]
    all_files: bool
    limit: int | None
    image_column: str | None
    label_column: str | None
    uri_column: str | None
    images_per_part: int | None


class ModelOptions(TypedDict, total=False):
    """The model and its pooling."""

    model: str
    size: int | None
    alpha: float | None
    weights: str | None
    pooling: Pooling


class EmbedOptions(ImageOptions, ModelOptions, total=False):
    """Options of `embed` and `estimate`."""

    precision: Precision
    format: FileFormat
    parts: int


class FeaturizeOptions(ModelOptions, total=False):
    """Options of `featurepress.spark.featurize`."""

    precision: Literal["float32", "bfloat16"]
    max_pixels: int
    max_bytes: int
    timeout_seconds: float


class ReduceOptions(TypedDict, total=False):
    """Options of `reduce`."""

    n_components: int | None
    variance: float | None
    whiten: bool
    solver: Literal["auto", "exact", "randomized"]
    random_state: int


class EvaluateOptions(TypedDict, total=False):
    """Options of `evaluate`."""

    label_field: str
    labels_file: str | None
    skip_unlabelled: bool
    split_field: str | None
    split_file: str | None
    test_value: str
    near_duplicate_threshold: float | None
    in_memory_bytes: int


class TrainOptions(EvaluateOptions, total=False):
    """Options of `train`."""

    kind: Literal["logistic", "knn", "centroid"]
    regularization: float | None
    n_neighbors: int
    balanced: bool
    random_state: int


class AddOptions(TypedDict, total=False):
    """Options of `models.add`; None leaves one to the file."""

    size: int | None
    output: str | None
    resize: Literal["stretch", "crop"] | None
    shortest_edge: int | None
    interpolation: Literal["bilinear", "bicubic", "area", "nearest", "box", "hamming", "lanczos"] | None
    like: Literal["pillow", "tensorflow"] | None
    antialias: bool | None
    mode: Literal["tf", "caffe", "torch", "raw"] | None
    mean: Sequence[float] | None
    scale: Sequence[float] | None
    channel_order: Literal["RGB", "BGR"] | None
    layout: Literal["NHWC", "NCHW"] | None


class PredictOptions(ImageOptions, total=False):
    """Options of `predict`."""

    top_k: int
    threshold: float | None
    file_format: FileFormat
    regions: bool
    tiles: bool
    annotate: bool
