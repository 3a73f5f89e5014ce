"""Reads the arguments that the verbs share: a feature set, and a destination outside it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from featurepress.errors import DestinationError, StorageError
from featurepress.features.feature_set import FeatureSet, open_features
from featurepress.runs.verbs import expand_time
from featurepress.storage import Storage, open_storage


def as_feature_set(features: FeatureSet | str | Path) -> FeatureSet:
    """Return a feature set; open it if its location is passed."""
    return features if isinstance(features, FeatureSet) else open_features(features)


def open_destination(out: str | Path) -> Storage:
    """Open a destination; ``{time}`` in it becomes the local date and time."""
    return open_storage(expand_time(str(out)))


@contextlib.contextmanager
def naming_out() -> Iterator[None]:
    """Raise errors of the storage as DestinationError: nothing has been written yet."""
    try:
        yield
    except StorageError as error:
        raise DestinationError(f"{str(error).rstrip('.')}. Choose another --out.") from error
