"""Every name on disk, once: the objects of a feature set and of what is derived from it, below their destination.

Names use ``/``. Imports nothing, so that any part of the package may use it.
"""

from __future__ import annotations

import re

FORMAT_VERSION = 2  # 1 had other names for the counts of receipts and manifest

PLAN_FOLDER = "plan"
FEATURES_FOLDER = "features"
FAILURES_FOLDER = "failures"
RECEIPTS_FOLDER = "receipts"
ATTEMPTS_FOLDER = "attempts"
CSV_FOLDER = "csv"
ANALYSIS_FOLDER = "analysis"
PROJECTION_FOLDER = "projection"
PREDICTIONS_FOLDER = "predictions"
ANNOTATED_FOLDER = "annotated"
FOLDERS = (
    PLAN_FOLDER,
    FEATURES_FOLDER,
    FAILURES_FOLDER,
    RECEIPTS_FOLDER,
    ATTEMPTS_FOLDER,
    CSV_FOLDER,
    ANALYSIS_FOLDER,
    PROJECTION_FOLDER,
    PREDICTIONS_FOLDER,
    ANNOTATED_FOLDER,
)

PLAN = f"{PLAN_FOLDER}/plan.json"
UNCONDITIONAL = f"{PLAN_FOLDER}/unconditional.json"
PLAN_MODELS = f"{PLAN_FOLDER}/models"  # the model of the plan, for the workers of a cluster
MANIFEST = "manifest.json"
MOMENTS = f"{ANALYSIS_FOLDER}/moments.npz"

PREDICTIONS_REQUEST = f"{PREDICTIONS_FOLDER}/request.json"
PREDICTIONS_SUMMARY = f"{PREDICTIONS_FOLDER}/summary.json"
PREDICTIONS_MODEL = f"{PREDICTIONS_FOLDER}/model"  # a copy of the trained model, for the workers

# A trained model is a folder of these.
TRAINED_MODEL = "model.json"
TRAINED_CLASSIFIER = "classifier.npz"
TRAINED_PROJECTION = "projection.npz"

# The keys of a feature set, below the prefix (group 1) of the set.
KEY_IN_FEATURE_SET = re.compile(
    r"(?:(.*?)/)?(?:manifest\.json|plan/(?:g\d+/)?(?:plan|listing)\.json|plan/(?:g\d+/)?chunk-\d{8}\.parquet|"
    r"(?:features|failures)/part-\d{8}\.parquet|receipts/part-\d{8}(?:\.g\d+)?\.json|"
    r"attempts/part-\d{8}-[0-9a-f]+|csv/part-\d{5}\.csv|analysis/moments\.npz|projection/pca-[0-9a-f]{16}\.npz)",
    re.DOTALL,
)


# -- plan and listing of a generation ------------------------------------------------------------------------


def plan_folder(generation: int) -> str:
    """Return the folder with the plan and the listing of a generation."""
    return PLAN_FOLDER if generation == 1 else f"{PLAN_FOLDER}/g{generation}"


def plan_name(generation: int) -> str:
    """Return the name of the plan of a generation."""
    return f"{plan_folder(generation)}/plan.json"


def listing_name(generation: int) -> str:
    """Return the name of the object that declares the listing of a generation complete."""
    return f"{plan_folder(generation)}/listing.json"


def previous_revisions_name(generation: int) -> str:
    """Return the name of the object with the shards that the generation before this one has revised."""
    return f"{plan_folder(generation)}/before.json"


def chunk_name(generation: int, number: int) -> str:
    """Return the name of a chunk of the listing of a generation."""
    return f"{plan_folder(generation)}/chunk-{number:08d}.parquet"


def revision_name(generation: int, shard: int) -> str:
    """Return the name of the references of a shard that a generation revises."""
    return f"{plan_folder(generation)}/part-{shard:08d}.parquet"


def parse_revision_name(name: str) -> tuple[int, int] | None:
    """Return generation and shard of a revision by its name; None if it is something else."""
    match = re.fullmatch(r"plan/g(\d+)/part-(\d+)\.parquet", name)
    return (int(match[1]), int(match[2])) if match else None


# -- one object a shard --------------------------------------------------------------------------------------


def part_name(shard: int) -> str:
    """Return the name of the part of a shard."""
    return f"{FEATURES_FOLDER}/part-{shard:08d}.parquet"


def failures_name(shard: int) -> str:
    """Return the name of the failures of a shard."""
    return f"{FAILURES_FOLDER}/part-{shard:08d}.parquet"


def receipt_name(shard: int, generation: int) -> str:
    """Return the name of the receipt of a shard."""
    return f"{RECEIPTS_FOLDER}/part-{shard:08d}{'' if generation == 1 else f'.g{generation}'}.json"


def parse_receipt_name(name: str) -> tuple[int, int] | None:
    """Return shard and generation of a receipt by its name; None if it is something else."""
    match = re.fullmatch(r"receipts/part-(\d+)(?:\.g(\d+))?\.json", name)
    return (int(match[1]), int(match[2] or 1)) if match else None


def attempt_name(shard: int, token: str) -> str:
    """Return the name of the mark of an attempt at a shard."""
    return f"{ATTEMPTS_FOLDER}/part-{shard:08d}-{token}"


def shard_of(name: str) -> int:
    """Return the shard of a part of the features or of the predictions, or of the receipt of a prediction."""
    return int(name.rpartition("/")[2].partition(".")[0].removeprefix("part-"))


# -- what is derived -----------------------------------------------------------------------------------------


def csv_name(number: int) -> str:
    """Return the name of a CSV file that a run exports."""
    return f"{CSV_FOLDER}/part-{number:05d}.csv"


def projection_name(sha256: str) -> str:
    """Return the name of the projection of a reduced set, by its hash."""
    return f"{PROJECTION_FOLDER}/pca-{sha256[:16]}.npz"


def prediction_name(shard: int, suffix: str) -> str:
    """Return the name of the predictions for a part, ``parquet`` or ``csv``, or of their receipt, ``json``."""
    return f"{PREDICTIONS_FOLDER}/part-{shard:08d}.{suffix}"


def is_prediction(name: str) -> bool:
    """Whether a name is that of the predictions for a part."""
    return name.startswith(f"{PREDICTIONS_FOLDER}/part-") and not name.endswith(".json")


def annotated_name(shard: int, number: int, stem: str) -> str:
    """Return the name of the copy of an image with its regions drawn into it."""
    return f"{ANNOTATED_FOLDER}/{shard:08d}-{number:05d}-{stem}.jpg"
