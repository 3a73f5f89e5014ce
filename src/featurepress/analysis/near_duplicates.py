"""Find near-duplicates: copies of a file, or similar views of the same object, such as frames of a turntable."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from featurepress.analysis.splits import locations_of

if TYPE_CHECKING:
    import numpy.typing as npt

LEAST_THRESHOLD, MOST_THRESHOLD = 0.85, 0.99  # below, images are only similar; above, rounding decides

_BLOCK_ROWS = 2_048  # rows of one label compared at once with as many others
_MOST_PAIRS = 4_000_000  # pairs held before they are merged into groups
_MOST_WORK = 2e12  # multiplications: one to three minutes on two cores
_PAIR_WORK = 64  # cost of one comparison, in multiplications
_SAMPLE_ROWS = 2_000  # rows of the sample: its 99 % quantile is accurate to 0.2 points
_OTHER_LABEL_QUANTILE = 0.99  # of images whose nearest image of another label is below the threshold


def near_duplicate_groups(
    X: npt.NDArray[Any], labels: npt.NDArray[np.str_], hashes: npt.NDArray[Any], *, threshold: float
) -> npt.NDArray[np.int64]:
    """Return groups of near-duplicates, including near-duplicates of near-duplicates: array (n_samples,) int64.

    Groups are numbered in order of first appearance. Images of different labels are near-duplicates only if their
    `hashes`, of the files, are equal. Images of a label are near-duplicates if the cosine of their features is at
    least `threshold`. The mean of all features is subtracted first, because it does not distinguish any two images.

    Time: n_features multiplications per pair of images of a label; `searchable_rows` returns how many rows that
    allows. Memory: two copies of the features of a label, however many near-duplicates there are.
    """
    unit, (_, kinds) = unit_rows(X), np.unique(labels, return_inverse=True)
    pairs = [_neighbours_of(hashes), *(_near(unit, rows, threshold) for rows in locations_of(kinds))]
    return _merged(np.arange(len(X)), pairs)


def near_duplicate_threshold(X: npt.NDArray[Any], labels: npt.NDArray[np.str_], *, random_state: int = 0) -> float:
    """Return the cosine from which two images of a label count as near-duplicates.

    Images of different labels are not near-duplicates, however similar they are. So the threshold is the smallest
    cosine that 99 % of the images do not reach with any image of another label, limited to 0.85 to 0.99. With a
    single label it is 0.85: too many near-duplicates are better than too few.

    Time: n_features multiplications per pair of one of 2,000 drawn images and any image. Memory: a copy of the
    features, and 2,000 x 2,048 cosines.
    """
    if not len(X):
        return LEAST_THRESHOLD
    unit, (_, kinds) = unit_rows(X), np.unique(labels, return_inverse=True)
    drawn = np.arange(len(X))
    if len(X) > _SAMPLE_ROWS:
        drawn = np.sort(np.random.default_rng(random_state).choice(len(X), _SAMPLE_ROWS, replace=False))
    nearest = np.full(len(drawn), -1.0, np.float32)
    for start in range(0, len(X), _BLOCK_ROWS):
        block = slice(start, start + _BLOCK_ROWS)
        cosines = unit[drawn] @ unit[block].T
        cosines[kinds[drawn][:, None] == kinds[block]] = -1.0
        np.maximum(nearest, cosines.max(axis=1), out=nearest)
    reached = np.quantile(nearest, _OTHER_LABEL_QUANTILE, method="higher")
    beyond = float(np.nextafter(reached, np.float32(2.0)))  # an equal cosine must not reach it
    return min(max(beyond, LEAST_THRESHOLD), MOST_THRESHOLD)


def searchable_rows(counts: npt.NDArray[Any], n_features: int) -> int:
    """Return how many rows `near_duplicate_groups` can search in one to three minutes on two cores.

    `counts` are the rows of each label; the result assumes the same proportions. It is the number of rows for
    which pairs of a label times (n_features + 64) is 2e12.
    """
    work = float((counts.astype(np.float64) ** 2).sum()) / 2 * (n_features + _PAIR_WORK)
    return int(counts.sum() * (_MOST_WORK / max(work, 1.0)) ** 0.5)


def unit_rows(X: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Return rows minus their mean, scaled to length 1 (or 0): array (n_samples, n_features) float32."""
    centred = np.asarray(X, np.float32) - X.mean(axis=0, dtype=np.float64).astype(np.float32)
    lengths = np.sqrt(np.einsum("ij,ij->i", centred, centred))[:, None]  # linalg.norm would copy all rows
    unit: npt.NDArray[np.float32] = np.divide(centred, lengths, out=centred, where=lengths > 0)
    return unit


def _neighbours_of(values: npt.NDArray[Any]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return pairs of indices that connect all equal values."""
    order = np.argsort(values, kind="stable")
    same = values[order][1:] == values[order][:-1]
    return order[:-1][same], order[1:][same]


def _near(
    unit: npt.NDArray[np.float32], rows: npt.NDArray[np.int64], threshold: float
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return pairs that connect each row with the first row of its group of near-duplicates."""
    own, groups = unit[rows], np.arange(len(rows))
    starts = range(0, len(rows), _BLOCK_ROWS)
    for top in starts:
        found, n_found = [], 0
        for left in starts[top // _BLOCK_ROWS :]:
            first, second = slice(top, top + _BLOCK_ROWS), slice(left, left + _BLOCK_ROWS)
            if (groups[first] == groups[top]).all() and (groups[second] == groups[top]).all():
                continue  # already one group
            i, j = np.nonzero(own[first] @ own[second].T >= threshold)
            found.append((top + i, left + j))
            n_found += len(i)
            if n_found > _MOST_PAIRS:
                groups, found, n_found = _merged(groups, found), [], 0
        groups = _merged(groups, found)
    _, starts_of, inverse = np.unique(groups, return_index=True, return_inverse=True)
    return rows[starts_of[inverse]], rows


def _merged(
    groups: npt.NDArray[np.int64], pairs: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]
) -> npt.NDArray[np.int64]:
    """Return the groups after merging those of each pair."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    if not pairs:
        return groups
    left, right = (groups[np.concatenate(ends)] for ends in zip(*pairs, strict=True))
    graph = coo_array((np.ones(len(left), bool), (left, right)), shape=(len(groups), len(groups)))
    merged: npt.NDArray[np.int64] = connected_components(graph, directed=False)[1][groups]
    return merged  # numbered in order of their first rows
