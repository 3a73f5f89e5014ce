"""Embed any number of images into feature vectors, then read, export and check them.

Each public name is imported when it is first used, so that ``import featurepress`` takes milliseconds.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from featurepress._version import __version__

if TYPE_CHECKING:  # "as" marks a name as public for type checkers
    from featurepress import engines as engines
    from featurepress import models as models
    from featurepress.analysis import PCA as PCA
    from featurepress.analysis.evaluation import Evaluation as Evaluation
    from featurepress.engines import LocalEngine as LocalEngine
    from featurepress.errors import FeaturepressError as FeaturepressError
    from featurepress.features.export import export as export
    from featurepress.features.feature_set import FeatureBatch as FeatureBatch
    from featurepress.features.feature_set import FeatureSet as FeatureSet
    from featurepress.learning.evaluation import evaluate as evaluate
    from featurepress.learning.model import TrainedModel as TrainedModel
    from featurepress.learning.model import open_model as open_model
    from featurepress.learning.prediction import predict as predict
    from featurepress.learning.predictions import Predictions as Predictions
    from featurepress.learning.reduced import ReducedFeatureSet as ReducedFeatureSet
    from featurepress.learning.reduced import open_features as open_features
    from featurepress.learning.reduction import reduce as reduce
    from featurepress.learning.training import train as train
    from featurepress.progress import Changes as Changes
    from featurepress.progress import Progress as Progress
    from featurepress.progress import Summary as Summary
    from featurepress.runs.verbs import Estimate as Estimate
    from featurepress.runs.verbs import embed as embed
    from featurepress.runs.verbs import estimate as estimate
    from featurepress.runs.verbs import resume as resume
    from featurepress.runs.verbs import retry as retry
    from featurepress.runs.verbs import update as update

# Name -> the module it is imported from, in the order of use. The imports above are for editors and mypy; a test
# compares the two.
_MODULES = {
    "embed": "runs.verbs",
    "resume": "runs.verbs",
    "update": "runs.verbs",
    "retry": "runs.verbs",
    "estimate": "runs.verbs",
    "open_features": "learning.reduced",
    "export": "features.export",
    "reduce": "learning.reduction",
    "train": "learning.training",
    "evaluate": "learning.evaluation",
    "open_model": "learning.model",
    "predict": "learning.prediction",
    "FeatureSet": "features.feature_set",
    "FeatureBatch": "features.feature_set",
    "ReducedFeatureSet": "learning.reduced",
    "PCA": "analysis",
    "TrainedModel": "learning.model",
    "Evaluation": "analysis.evaluation",
    "Predictions": "learning.predictions",
    "Progress": "progress",
    "Summary": "progress",
    "Changes": "progress",
    "Estimate": "runs.verbs",
    "models": "models",
    "engines": "engines",
    "LocalEngine": "engines",
    "FeaturepressError": "errors",
}

__all__ = [*_MODULES, "__version__"]  # noqa: PLE0604 - names only


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'featurepress' has no attribute '{name}'")
    module = import_module(f"featurepress.{_MODULES[name]}")
    value = module if name == _MODULES[name] else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
