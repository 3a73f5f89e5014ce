"""Fit a PCA to a feature set out of core: sums over its parts, computed by any engine and merged."""

from __future__ import annotations

import contextlib
import io
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from featurepress.analysis.moments import Moments
from featurepress.analysis.pca import PCA
from featurepress.analysis.sketch import Sketch
from featurepress.errors import AnalysisError, StorageError
from featurepress.features.feature_set import FeatureSet
from featurepress.features.parts import part_batches
from featurepress.ledger import Plan
from featurepress.ledger.names import MOMENTS
from featurepress.process import send_message

if TYPE_CHECKING:
    import numpy.typing as npt

    from featurepress.specs import Features

PARTS_A_TASK = 64  # at least, if there are so many: a task returns as much as a matrix of all features

Groups = tuple[tuple[str, ...], ...]
Run = Callable[[Callable[[Plan, int], Any], int], Iterable[Any]]  # runs a task over a number of shards


@dataclass(frozen=True)
class SumMoments:
    """The task that sums the moments of a group of parts of a feature set; shard i is the i-th group of names."""

    groups: Groups

    def __call__(self, plan: Plan, shard: int) -> Moments:
        """Sum one group; `plan` is the plan of the feature set."""
        moments = Moments.empty(plan.backbone.n_features)
        for X in _matrices(plan, self.groups[shard]):
            moments.add(X)
        return moments


@dataclass(frozen=True)
class SumSketches:
    """The task that sums sketches, in these directions, of a group of parts; groups as of `SumMoments`."""

    groups: Groups
    directions: npt.NDArray[np.float32]

    def __call__(self, plan: Plan, shard: int) -> Sketch:
        """Sum one group; `plan` is the plan of the feature set."""
        sketch = Sketch.empty(self.directions)
        for X in _matrices(plan, self.groups[shard]):
            sketch.add(X)
        return sketch


def _matrices(plan: Plan, names: Iterable[str]) -> Iterator[Features]:
    for name in names:
        for X, _ in part_batches(plan, name, []):
            yield X
            send_message(("rows", len(X)))


def fit(pca: PCA, features: FeatureSet, run: Run) -> PCA:
    """Fit a PCA to a feature set, read in batches with bounded memory.

    `run` runs a task over a number of shards of the set's plan, and returns the results in any order.

    Raises
    ------
    AnalysisError
        There are too few rows, or features are NaN or infinite.
    """
    if not features.parts or not len(features):
        raise AnalysisError(f"The feature set '{features.location}' is empty: there is nothing to reduce.")
    if pca.solver_for(features.n_features) == "exact":
        return pca.fit_moments(moments_of(features, run))
    groups = _grouped(list(features.parts))

    def one_pass(directions: npt.NDArray[np.float32]) -> Sketch:
        sketch = Sketch.empty(directions)
        for other in run(SumSketches(groups, directions), len(groups)):
            sketch.merge(other)
        return sketch

    return pca.fit_passes(len(features), features.n_features, one_pass)


def moments_of(features: FeatureSet, run: Run) -> Moments:
    """Return the moments of a feature set, and store them in the set.

    Stored moments are reused: only new parts are read. If a part was rewritten since, all parts are read again.
    Nothing is stored in a set that cannot be written.
    """
    parts = features.parts
    moments, known = _stored(features)
    if any(parts.get(name) != digest for name, digest in known.items()):
        moments, known = Moments.empty(features.n_features), {}
    groups = _grouped([name for name in parts if name not in known])
    for other in run(SumMoments(groups), len(groups)):
        moments.merge(other)
    if groups:
        _store(features, moments)
    return moments


def _grouped(names: list[str]) -> Groups:
    """Return groups of names in order, of about `PARTS_A_TASK` or more."""
    n_groups = max(1, len(names) // PARTS_A_TASK) if names else 0
    return tuple(
        tuple(names[len(names) * i // n_groups : len(names) * (i + 1) // n_groups]) for i in range(n_groups)
    )


def _stored(features: FeatureSet) -> tuple[Moments, dict[str, str]]:
    """Return the moments stored in a set, with the names and hashes of the parts they cover."""
    nothing: tuple[Moments, dict[str, str]] = (Moments.empty(features.n_features), {})
    data = features.plan.storage.read(MOMENTS)
    if not data:
        return nothing
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            known = dict(zip(arrays["names"].tolist(), arrays["hashes"].tolist(), strict=True))
            moments = Moments.from_arrays(arrays)
    except (ValueError, KeyError, OSError, zipfile.BadZipFile):  # damaged: they are computed again
        return nothing
    return (moments, known) if moments.n_features == features.n_features else nothing


def _store(features: FeatureSet, moments: Moments) -> None:
    buffer, parts = io.BytesIO(), features.parts
    names, hashes = (np.array(list(texts), np.str_) for texts in (parts, parts.values()))
    np.savez(buffer, names=names, hashes=hashes, **moments.to_arrays())
    with contextlib.suppress(StorageError):  # the set of another user: its parts are read again the next time
        features.plan.storage.write(MOMENTS, buffer.getvalue())
