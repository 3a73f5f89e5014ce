"""The settings: one frozen dataclass a stage, with the constraints declared as data.

The command builds its options from the same declarations, so that names, defaults and help stand in one place.
"""

from featurepress.settings.analysis import (
    ClassifierSettings,
    LabelSettings,
    PredictionSettings,
    ReductionSettings,
    SplitSettings,
    TrainingSettings,
)
from featurepress.settings.constraint import Constraint, declared_of, nearest, sorted_options
from featurepress.settings.model_files import Choices
from featurepress.settings.options import (
    EmbedOptions,
    EvaluateOptions,
    ImageOptions,
    PredictOptions,
    ReduceOptions,
    ResumeOptions,
    RetryOptions,
    TrainOptions,
)
from featurepress.settings.run import (
    DEFAULT_MODEL,
    DRIVER_BYTES,
    IMAGE_SETTINGS,
    MODEL_COPIES,
    WORKER_BYTES,
    FeatureSettings,
    ImageSettings,
    ListingSettings,
    Settings,
    available_cores,
    declared,
)

__all__ = [
    "DEFAULT_MODEL",
    "DRIVER_BYTES",
    "IMAGE_SETTINGS",
    "MODEL_COPIES",
    "WORKER_BYTES",
    "Choices",
    "ClassifierSettings",
    "Constraint",
    "EmbedOptions",
    "EvaluateOptions",
    "FeatureSettings",
    "ImageOptions",
    "ImageSettings",
    "LabelSettings",
    "ListingSettings",
    "PredictOptions",
    "PredictionSettings",
    "ReduceOptions",
    "ReductionSettings",
    "ResumeOptions",
    "RetryOptions",
    "Settings",
    "SplitSettings",
    "TrainOptions",
    "TrainingSettings",
    "available_cores",
    "declared",
    "declared_of",
    "nearest",
    "sorted_options",
]
