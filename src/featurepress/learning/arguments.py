"""Reads the arguments that the verbs share: a feature set, and a destination outside it."""

from __future__ import annotations

from pathlib import Path

from featurepress.features.feature_set import FeatureSet, open_features
from featurepress.runs.verbs import expand_time
from featurepress.storage import Storage, open_storage


def as_feature_set(features: FeatureSet | str | Path) -> FeatureSet:
    """Return a feature set; open it if its location is passed."""
    return features if isinstance(features, FeatureSet) else open_features(features)


def open_destination(out: str | Path) -> Storage:
    """Open a destination; ``{time}`` in it becomes the local date and time."""
    return open_storage(expand_time(str(out)))
