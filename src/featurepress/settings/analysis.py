"""The settings of what is done with features: export, reduction, classification, prediction."""

from __future__ import annotations

from dataclasses import dataclass

from featurepress.errors import SettingError
from featurepress.settings.constraint import Stage, optional_setting, setting


@dataclass(frozen=True)
class ExportSettings(Stage):
    """How features are exported."""

    parts: int = setting(1, int, "Number of files, named as name-00000-of-00005.csv.", minimum=1, maximum=99_999)


@dataclass(frozen=True)
class ReductionSettings(Stage):
    """How features are reduced to components."""

    n_components: int | None = optional_setting(int, "Number of components to keep (default: 128).", minimum=1)
    variance: float | None = optional_setting(
        float,
        "Instead of a number: keep as many components as explain this share of the variance, such as 0.95.",
        minimum=0,
        maximum=1,
    )
    whiten: bool = setting(False, bool, "Scale all components to variance 1.")
    solver: str = setting(
        "auto",
        str,
        "'exact' computes all components, 'randomized' only those to keep; 'auto' is exact up to 4,000 features.",
        choices=("auto", "exact", "randomized"),
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

    kind: str = setting(
        "logistic",
        str,
        "Multinomial logistic regression, k nearest neighbours, or nearest class centroid.",
        choices=("logistic", "knn", "centroid"),
    )
    regularization: float | None = optional_setting(
        float,
        "Inverse strength of the logistic regression, scikit-learn's C (default: by cross-validation).",
        minimum=1e-12,
    )
    n_neighbors: int = setting(5, int, "Number of neighbours that vote in knn.", minimum=1)
    balanced: bool = setting(False, bool, "Give rare labels the same weight as frequent ones.")
    random_state: int = setting(0, int, "Seed of all random choices.", minimum=0)


@dataclass(frozen=True)
class LabelSettings(Stage):
    """Where the labels of a feature set are."""

    label_field: str = setting("label", str, "Field of the feature set that holds the labels.")
    labels_file: str | None = optional_setting(
        str, "Instead of a field: a CSV file with the columns uri and label."
    )
    skip_unlabelled: bool = setting(False, bool, "Skip images without a label instead of stopping with an error.")


@dataclass(frozen=True)
class SplitSettings(Stage):
    """Which images train, which test, and which count as near-duplicates."""

    split_field: str | None = optional_setting(
        str,
        "Field that selects the test images (default: 'split', if there is one), or 'drawn' for a random quarter.",
    )
    split_file: str | None = optional_setting(str, "Instead of a field: a CSV file with the columns uri and split.")
    test_value: str = setting(
        "test", str, "Value of that field for test images, in upper or lower case; all other images train."
    )
    near_duplicate_threshold: float | None = optional_setting(
        float,
        "Cosine from which two images with the same label are near-duplicates (default: the cosine that 99 % of "
        "the images do not reach with any image of another label).",
        minimum=0,
        maximum=1,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.split_field is not None and self.split_file is not None:
            raise SettingError("Set either 'split_field' or 'split_file', not both.")


@dataclass(frozen=True)
class TrainingSettings(Stage):
    """The memory that training uses."""

    in_memory_bytes: int = setting(
        1024**3,
        int,
        "Largest size of the features, and one number per image and label, in memory; larger sets are streamed.",
        minimum=1,
    )


@dataclass(frozen=True)
class PredictionSettings(Stage):
    """What is predicted for each image."""

    top_k: int = setting(1, int, "Number of most probable labels to write.", minimum=1, maximum=1_000)
    threshold: float | None = optional_setting(
        float,
        "Probability below which the label is 'unknown' (default: none; 0.5 for --regions, 0.8 for --tiles).",
        minimum=0,
        maximum=1,
    )
    file_format: str = setting("parquet", str, "Format of the prediction files.", choices=("parquet", "csv"))
    regions: bool = setting(
        False, bool, "Classify each cell of the model's feature map: several labels per image, with boxes."
    )
    tiles: bool = setting(
        False, bool, "Classify overlapping crops: like --regions, slower, but finds many more objects."
    )
    annotate: bool = setting(False, bool, "Write a copy of each image with the boxes drawn in.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.regions or self.tiles) and self.top_k > 1:
            raise SettingError(
                "Regions ('regions', 'tiles') have one label each. Leave out 'top_k' (--top-k), or --regions and "
                "--tiles."
            )
        if self.annotate and not (self.regions or self.tiles):
            raise SettingError("Only 'regions' and 'tiles' have boxes to draw ('annotate'). Add --tiles.")
