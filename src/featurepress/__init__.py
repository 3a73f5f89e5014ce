"""Press any number of images into feature vectors, then read, export and check them.

The public names; each is imported from its file when it is first used, so that ``import featurepress`` and
``featurepress --help`` stay quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from featurepress import engines
    from featurepress.analysis.evaluation import Evaluation
    from featurepress.answers import Predictions
    from featurepress.engines import LocalEngine
    from featurepress.errors import FeaturepressError
    from featurepress.evaluation import evaluate
    from featurepress.exports import export
    from featurepress.featureset import FeatureBatch, FeatureSet, open_features
    from featurepress.prediction import predict
    from featurepress.progress import Changes, Progress, Summary
    from featurepress.reduction import reduce
    from featurepress.run import Estimate, embed, estimate, resume, retry, update
    from featurepress.trained import TrainedModel, open_model
    from featurepress.training import train

_HOMES = {
    "Predictions": "answers",
    "LocalEngine": "engines",
    "FeaturepressError": "errors",
    "Evaluation": "analysis.evaluation",
    "evaluate": "evaluation",
    "export": "exports",
    "FeatureBatch": "featureset",
    "FeatureSet": "featureset",
    "open_features": "featureset",
    "Estimate": "run",
    "Changes": "progress",
    "Progress": "progress",
    "Summary": "progress",
    "predict": "prediction",
    "reduce": "reduction",
    "embed": "run",
    "estimate": "run",
    "resume": "run",
    "retry": "run",
    "update": "run",
    "TrainedModel": "trained",
    "open_model": "trained",
    "train": "training",
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
    "TrainedModel",
    "Evaluation",
    "Predictions",
    "Progress",
    "Summary",
    "Changes",
    "Estimate",
    "engines",
    "LocalEngine",
    "FeaturepressError",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name == "engines":
        return import_module("featurepress.engines")
    if name not in _HOMES:
        raise AttributeError(f"module 'featurepress' has no attribute '{name}'")
    value = getattr(import_module(f"featurepress.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
