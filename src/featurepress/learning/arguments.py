"""Reads the arguments that the verbs share: a feature set, and a destination outside it."""

from __future__ import annotations

from pathlib import Path

from featurepress.errors import DestinationError
from featurepress.features.feature_set import FeatureSet, open_features
from featurepress.runs.verbs import expand_time
from featurepress.storage import Storage, is_below, open_storage


def as_feature_set(features: FeatureSet | str | Path) -> FeatureSet:
    """Return a feature set; open it if its location is passed."""
    return features if isinstance(features, FeatureSet) else open_features(features)


def open_destination(out: str | Path) -> Storage:
    """Open a destination; ``{time}`` in it becomes the local date and time."""
    return open_storage(expand_time(str(out)))


def require_outside(features: FeatureSet, storage: Storage) -> None:
    """Raise DestinationError if a destination is inside a feature set."""
    if is_below(storage.location, features.location):
        raise DestinationError(
            f"'{storage.location}' is inside the feature set '{features.location}', which is only read. "
            "Choose an --out beside it."
        )
