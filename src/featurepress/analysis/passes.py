"""Fit a PCA to a feature set out of core: sums over its parts, computed by any engine and merged."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from featurepress.analysis.moments import Moments
from featurepress.analysis.pca import PCA
from featurepress.analysis.sketch import Sketch
from featurepress.errors import AnalysisError, StorageError
from featurepress.features.feature_set import FeatureSet
from featurepress.ledger import Plan
from featurepress.ledger.names import MOMENTS
from featurepress.process import send_message

if TYPE_CHECKING:
    import numpy.typing as npt

    from featurepress.specs import Features

# So many parts at least are merged where they are read: what comes back is as large as a matrix of all features.
PARTS_A_TASK = 64

Groups = tuple[tuple[str, ...], ...]
Run = Callable[[Callable[[Plan, int], Any], int], Iterable[Any]]  # a task, and for how many shards


@dataclass(frozen=True)
class SumMoments:
    """The task that sums the moments of a group of parts of a feature set.

    Parameters
    ----------
    groups : tuple of tuple of str
        Names of parts; shard i is the i-th group.
    """

    groups: Groups

    def __call__(self, plan: Plan, shard: int) -> Moments:
        """Sum one group; `plan` is that of the feature set."""
        features = FeatureSet(plan, None)
        moments = Moments.empty(features.n_features)
        for X in _matrices(features, self.groups[shard]):
            moments.add(X)
        return moments


@dataclass(frozen=True)
class SumSketches:
    """The task that sums the sketches of a group of parts of a feature set.

    Parameters
    ----------
    groups : tuple of tuple of str
        As of `SumMoments`.
    directions : array (n_features, n_directions) float32
        Orthonormal columns.
    """

    groups: Groups
    directions: npt.NDArray[np.float32]

    def __call__(self, plan: Plan, shard: int) -> Sketch:
        """Sum one group; `plan` is that of the feature set."""
        sketch = Sketch.empty(self.directions)
        for X in _matrices(FeatureSet(plan, None), self.groups[shard]):
            sketch.add(X)
        return sketch


def _matrices(features: FeatureSet, names: Iterable[str]) -> Iterator[Features]:
    for name in names:
        for X in features.matrices(name):
            yield X
            send_message(("rows", len(X)))


def fit(pca: PCA, features: FeatureSet, run: Run) -> PCA:
    """Fit a PCA to a feature set.

    Parameters
    ----------
    pca : PCA
        Not fitted yet.
    features : FeatureSet
        Nothing of it is held in memory but a batch of rows at a time.
    run : callable
        Runs a task over so many shards of the set's plan, and gives the results in any order.

    Raises
    ------
    AnalysisError
        There are too few rows, or some are no numbers.
    """
    if not features.parts or not len(features):
        raise AnalysisError(f"The feature set '{features.location}' is empty: there is nothing to reduce.")
    if pca.solver_for(features.n_features) == "exact":
        return pca.fit_moments(moments_of(features, run))
    groups = _grouped(list(features.parts))

    def one_pass(directions: npt.NDArray[np.float32]) -> Sketch:
        sketch = Sketch.empty(directions)
        for found in run(SumSketches(groups, directions), len(groups)):
            sketch.merge(found)
        return sketch

    return pca.fit_passes(len(features), features.n_features, one_pass)


def moments_of(features: FeatureSet, run: Run) -> Moments:
    """Return the moments of a feature set: those that were kept of it, and what has come since; keep them.

    They are kept in the set itself, with the hashes of the parts that are in them; where a part was written anew
    since, all are read again. A set that cannot be written to keeps none.
    """
    parts = features.parts
    moments, known = _kept(features)
    if any(parts.get(name) != digest for name, digest in known.items()):
        moments, known = Moments.empty(features.n_features), {}
    new = [name for name in parts if name not in known]
    groups = _grouped(new)
    for found in run(SumMoments(groups), len(groups)):
        moments.merge(found)
    if new:
        _keep(features, moments)
    return moments


def _grouped(names: list[str]) -> Groups:
    """Return runs of names, each of `PARTS_A_TASK` at least where there are so many."""
    n_groups = max(1, len(names) // PARTS_A_TASK) if names else 0
    return tuple(
        tuple(names[len(names) * i // n_groups : len(names) * (i + 1) // n_groups]) for i in range(n_groups)
    )


def _kept(features: FeatureSet) -> tuple[Moments, dict[str, str]]:
    """Read what was kept of a set, with the names and hashes of the parts in it."""
    data = features.plan.storage.read(MOMENTS)
    nothing: tuple[Moments, dict[str, str]] = (Moments.empty(features.n_features), {})
    if not data:
        return nothing
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            known = dict(zip(arrays["names"].tolist(), arrays["hashes"].tolist(), strict=True))
            moments = Moments.from_bytes(arrays["moments"].tobytes())
    except (ValueError, KeyError, OSError):  # damaged: it can be made again
        return nothing
    return (moments, known) if moments.n_features == features.n_features else nothing


def _keep(features: FeatureSet, moments: Moments) -> None:
    buffer, parts = io.BytesIO(), features.parts
    np.savez(
        buffer,
        names=np.array(list(parts), np.str_),
        hashes=np.array(list(parts.values()), np.str_),
        moments=np.frombuffer(moments.to_bytes(), np.uint8),
    )
    try:
        features.plan.storage.write(MOMENTS, buffer.getvalue())
    except StorageError:  # somebody else's set: it is read again the next time
        return
