"""Embed any number of images into feature vectors, then read, export and check them.

The public names; each is imported from its file when it is first used, so that ``import featurepress`` and
``featurepress --help`` stay quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from featurepress._version import __version__

if TYPE_CHECKING:
    from featurepress import engines, models
    from featurepress.analysis import PCA
    from featurepress.analysis.evaluation import Evaluation
    from featurepress.engines import LocalEngine
    from featurepress.errors import FeaturepressError
    from featurepress.features.export import export
    from featurepress.features.feature_set import FeatureBatch, FeatureSet
    from featurepress.learning.evaluation import evaluate
    from featurepress.learning.model import TrainedModel, open_model
    from featurepress.learning.prediction import predict
    from featurepress.learning.predictions import Predictions
    from featurepress.learning.reduced import ReducedFeatureSet, open_features
    from featurepress.learning.reduction import reduce
    from featurepress.learning.training import train
    from featurepress.progress import Changes, Progress, Summary
    from featurepress.runs.verbs import Estimate, embed, estimate, resume, retry, update

_HOMES = {
    "Predictions": "learning.predictions",
    "LocalEngine": "engines",
    "FeaturepressError": "errors",
    "Evaluation": "analysis.evaluation",
    "evaluate": "learning.evaluation",
    "export": "features.export",
    "FeatureBatch": "features.feature_set",
    "FeatureSet": "features.feature_set",
    "open_features": "learning.reduced",
    "ReducedFeatureSet": "learning.reduced",
    "PCA": "analysis",
    "Estimate": "runs.verbs",
    "Changes": "progress",
    "Progress": "progress",
    "Summary": "progress",
    "predict": "learning.prediction",
    "reduce": "learning.reduction",
    "embed": "runs.verbs",
    "estimate": "runs.verbs",
    "resume": "runs.verbs",
    "retry": "runs.verbs",
    "update": "runs.verbs",
    "TrainedModel": "learning.model",
    "open_model": "learning.model",
    "train": "learning.training",
}

__all__ = [  # noqa: RUF022 - in the order of use
    "embed",
    "resume",
    "update",
    "retry",
    "estimate",
    "open_features",
    "export",
    "reduce",
    "train",
    "evaluate",
    "open_model",
    "predict",
    "FeatureSet",
    "FeatureBatch",
    "ReducedFeatureSet",
    "PCA",
    "TrainedModel",
    "Evaluation",
    "Predictions",
    "Progress",
    "Summary",
    "Changes",
    "Estimate",
    "models",
    "engines",
    "LocalEngine",
    "FeaturepressError",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name in ("engines", "models"):
        return import_module(f"featurepress.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'featurepress' has no attribute '{name}'")
    value = getattr(import_module(f"featurepress.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
