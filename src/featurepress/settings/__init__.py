"""The settings: one frozen dataclass a stage, with the constraints declared as data.

The command builds its options from the same declarations, so that names, defaults and help stand in one place.
"""

from featurepress.settings.analysis import ClassifierSettings as ClassifierSettings
from featurepress.settings.analysis import ExportSettings as ExportSettings
from featurepress.settings.analysis import LabelSettings as LabelSettings
from featurepress.settings.analysis import PredictionSettings as PredictionSettings
from featurepress.settings.analysis import ReductionSettings as ReductionSettings
from featurepress.settings.analysis import SplitSettings as SplitSettings
from featurepress.settings.analysis import TrainingSettings as TrainingSettings
from featurepress.settings.constraint import Constraint as Constraint
from featurepress.settings.constraint import declared_of as declared_of
from featurepress.settings.constraint import nearest as nearest
from featurepress.settings.constraint import sorted_options as sorted_options
from featurepress.settings.model_files import Choices as Choices
from featurepress.settings.options import AddOptions as AddOptions
from featurepress.settings.options import EmbedOptions as EmbedOptions
from featurepress.settings.options import EvaluateOptions as EvaluateOptions
from featurepress.settings.options import FeaturizeOptions as FeaturizeOptions
from featurepress.settings.options import ImageOptions as ImageOptions
from featurepress.settings.options import PredictOptions as PredictOptions
from featurepress.settings.options import ReduceOptions as ReduceOptions
from featurepress.settings.options import ResumeOptions as ResumeOptions
from featurepress.settings.options import RetryOptions as RetryOptions
from featurepress.settings.options import TrainOptions as TrainOptions
from featurepress.settings.run import DEFAULT_MODEL as DEFAULT_MODEL
from featurepress.settings.run import DRIVER_BYTES as DRIVER_BYTES
from featurepress.settings.run import IMAGE_SETTINGS as IMAGE_SETTINGS
from featurepress.settings.run import MODEL_COPIES as MODEL_COPIES
from featurepress.settings.run import WORKER_BYTES as WORKER_BYTES
from featurepress.settings.run import FeatureSettings as FeatureSettings
from featurepress.settings.run import ImageSettings as ImageSettings
from featurepress.settings.run import ListingSettings as ListingSettings
from featurepress.settings.run import Settings as Settings
from featurepress.settings.run import available_cores as available_cores
from featurepress.settings.run import declared as declared
