"""The settings of what is done with features: reduced, classified, measured, predicted."""

from __future__ import annotations

from dataclasses import dataclass

from featurepress.errors import SettingError
from featurepress.settings.constraint import Stage, setting

SOLVERS = ("auto", "exact", "randomized")


@dataclass(frozen=True)
class ReductionSettings(Stage):
    """How features are reduced to components."""

    called = "a reduction"

    n_components: int | None = setting(
        None, int, "How many components are kept (default: 128).", minimum=1, optional=True
    )
    variance: float | None = setting(
        None,
        float,
        "Instead: as many as explain this share of the variance, such as 0.95.",
        minimum=0,
        maximum=1,
        optional=True,
    )
    whiten: bool = setting(False, bool, "Give all components variance 1.")
    solver: str = setting(
        "auto", str, "'randomized' is quicker for more than 4,000 features, which 'auto' knows.", choices=SOLVERS
    )
    random_state: int = setting(0, int, "Seed of the randomized solver.", minimum=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.variance is not None and self.n_components is not None:
            raise SettingError("Set either 'n_components' or 'variance', not both.")
        if self.variance is not None and self.solver == "randomized":
            raise SettingError("The 'variance' setting needs all variances, which only solver='exact' finds.")


@dataclass(frozen=True)
class ClassifierSettings(Stage):
    """How features are classified."""

    called = "a classifier"

    kind: str = setting(
        "logistic",
        str,
        "Multinomial logistic regression, k nearest neighbours, or the nearest mean of a class.",
        choices=("logistic", "knn", "centroid"),
    )
    regularization: float | None = setting(
        None,
        float,
        "Of logistic: inverse strength, scikit-learn's C (default: by cross-validation).",
        minimum=1e-12,
        optional=True,
    )
    n_neighbors: int = setting(5, int, "Of knn: how many neighbours vote.", minimum=1)
    balanced: bool = setting(False, bool, "Let rare classes weigh as much as frequent ones.")
    random_state: int = setting(0, int, "Seed of what is drawn.", minimum=0)


@dataclass(frozen=True)
class LabelSettings(Stage):
    """Which labels the rows of a feature set have."""

    called = "the labels"

    label_field: str = setting("label", str, "Field of the feature set that holds the labels.")
    labels_file: str | None = setting(
        None, str, "Instead: a CSV file with the columns uri and label.", optional=True
    )
    skip_unlabelled: bool = setting(False, bool, "Leave pictures without a label out; otherwise they are an error.")


@dataclass(frozen=True)
class SplitSettings(Stage):
    """Which pictures train and which test, and which are taken for near-duplicates of each other."""

    called = "a split"

    split_field: str | None = setting(
        None,
        str,
        "Field that says which pictures test (default: 'split', if there is one), or 'drawn': a quarter does.",
        optional=True,
    )
    split_file: str | None = setting(
        None, str, "Instead: a CSV file with the columns uri and split.", optional=True
    )
    test_value: str = setting("test", str, "The word there for test pictures, case ignored; all others train.")
    near_duplicate_threshold: float | None = setting(
        None,
        float,
        "Cosine from which two pictures of a label are near-duplicates (default: what 99 of 100 pictures do not "
        "reach with any picture of another label).",
        minimum=0,
        maximum=1,
        optional=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.split_field is not None and self.split_file is not None:
            raise SettingError("Set either 'split_field' or 'split_file', not both.")


@dataclass(frozen=True)
class TrainingSettings(Stage):
    """What training may take."""

    called = "training"

    in_memory_bytes: int = setting(
        1024**3,
        int,
        "Bytes of features that are fitted in memory (and a number a label); more are streamed.",
        minimum=1,
    )


@dataclass(frozen=True)
class PredictionSettings(Stage):
    """What is predicted for each image."""

    called = "a prediction"

    top_k: int = setting(1, int, "How many of the most probable labels are written.", minimum=1, maximum=1_000)
    threshold: float | None = setting(
        None,
        float,
        "The label is 'unknown' where no probability reaches this (default: none; of cells 0.5, of tiles 0.8).",
        minimum=0,
        maximum=1,
        optional=True,
    )
    file_format: str = setting("parquet", str, "Format of the prediction files.", choices=("parquet", "csv"))
    regions: bool = setting(False, bool, "Classify each cell of the model's grid: several labels per image.")
    tiles: bool = setting(False, bool, "Classify overlapping crops: likewise, slower, and finds far more.")
    annotate: bool = setting(False, bool, "Write a copy of each picture with the boxes drawn in.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.regions or self.tiles) and self.top_k > 1:
            raise SettingError(
                "Regions ('regions', 'tiles') have one label each. Leave out 'top_k' (--top-k), or --regions and "
                "--tiles."
            )
        if self.annotate and not (self.regions or self.tiles):
            raise SettingError("There are boxes to draw ('annotate') only with 'regions' or 'tiles'. Give --tiles.")
