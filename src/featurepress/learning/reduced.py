"""A reduced feature set: a feature set whose features are the components of a projection."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import Any

from featurepress.analysis import PCA
from featurepress.errors import FeatureSetError
from featurepress.features import feature_set
from featurepress.features.feature_set import FeatureSet
from featurepress.ledger import Plan
from featurepress.ledger.names import projection_name


class ReducedFeatureSet(FeatureSet):
    """A feature set that `featurepress.reduce` has written.

    Use `featurepress.reduce` to make one, `featurepress.open_features` to open one.
    """

    @functools.cached_property
    def pca(self) -> PCA:
        """The projection that made the features, read when it is first used.

        Raises
        ------
        FeatureSetError
            Its file is missing or was changed.
        """
        return read_projection(self.plan)

    @property
    def reduction(self) -> dict[str, Any]:
        """Where the set comes from: ``features``, ``run_id`` and ``parts`` of the source, and ``settings``."""
        values: dict[str, Any] = self.plan.certificate["reduced"]
        return values


def open_features(location: str | Path, *, allow_incomplete: bool = False) -> FeatureSet:
    """Open the feature set at a destination.

    Parameters
    ----------
    location : str or path
        The ``--out`` of the run that made it.
    allow_incomplete : bool, default=False
        Open a set whose run has not finished, too; it holds the rows of the finished parts.

    Returns
    -------
    FeatureSet
        A reduced set is a `ReducedFeatureSet`: its `pca` is the projection.

    Raises
    ------
    FeatureSetError
        There is no feature set.
    IncompleteError
        Its run has not finished.
    """
    features = feature_set.open_features(location, allow_incomplete=allow_incomplete)
    if features.plan.backbone.projection:
        return ReducedFeatureSet(features.plan, features.manifest)
    return features


def read_projection(plan: Plan) -> PCA:
    """Read the projection of a reduced set.

    Raises
    ------
    FeatureSetError
        Its file is missing or was changed.
    """
    storage, sha256 = plan.storage, plan.backbone.projection["sha256"]
    name = projection_name(sha256)
    data = storage.read(name)
    if data is None or hashlib.sha256(data).hexdigest() != sha256:
        problem = "is missing" if data is None else "has changed since the set was made (its hash differs)"
        raise FeatureSetError(
            f"'{storage.location}/{name}', the projection of the reduced set, {problem}. Reduce into another --out."
        )
    return PCA.from_bytes(data)
