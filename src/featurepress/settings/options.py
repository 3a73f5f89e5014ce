"""The options of each public function as typed dictionaries, so that an editor and mypy know them.

They repeat names and types of the declared settings; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypedDict

Pooling = Literal["avg", "flatten", "max"]
Precision = Literal["auto", "float32", "bfloat16"]
FileFormat = Literal["parquet", "csv"]


class ResumeOptions(TypedDict, total=False):
    """Options of `resume` and `update`: none of them changes a feature."""

    anonymous: bool
    allow_private_hosts: bool
    timeout_seconds: float
    max_failures: float
    workers: int | None
    memory_bytes: int | None


class RetryOptions(ResumeOptions, total=False):
    """Options of `retry`: a failed image may be allowed more."""

    max_pixels: int
    max_bytes: int


class ImageOptions(RetryOptions, total=False):
    """Which images are read, and what one may cost."""

    labels: str
    include: Sequence[str]
    exclude: Sequence[str]
    all_files: bool
    limit: int | None
    image_column: str | None
    label_column: str | None
    uri_column: str | None
    images_per_part: int | None


class EmbedOptions(ImageOptions, total=False):
    """Options of `embed` and `estimate`."""

    model: str
    size: int | None
    alpha: float | None
    weights: str | None
    pooling: Pooling
    precision: Precision
    format: FileFormat
    parts: int


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


class PredictOptions(ImageOptions, total=False):
    """Options of `predict`."""

    top_k: int
    threshold: float | None
    file_format: FileFormat
    regions: bool
    tiles: bool
    annotate: bool
