"""Near-duplicate pictures: the same file twice, or two views of one thing, such as frames of a turntable."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from featurepress.analysis.splits import locations_of

if TYPE_CHECKING:
    import numpy.typing as npt

LEAST_THRESHOLD, MOST_THRESHOLD = 0.85, 0.99  # below, pictures are of a kind only; above, rounding decides

_BLOCK_ROWS = 2_048  # of one label that are compared at once with as many others of it
_MOST_PAIRS = 4_000_000  # that are held before they are joined
_MOST_WORK = 2e12  # multiplications: one to three minutes on two cores
_PAIR_WORK = 64  # multiplications that it takes to look at one cosine
_DRAWN_ROWS = 2_000  # whose nearest picture of another label is looked for: the share is then known to 0.2 points
_STRANGERS = 0.99  # of the pictures, that share reaches the threshold with no picture of another label


def near_duplicate_groups(
    X: npt.NDArray[Any], labels: npt.NDArray[np.str_], hashes: npt.NDArray[Any], *, threshold: float
) -> npt.NDArray[np.int64]:
    """Group pictures that are twins, and twins of twins.

    Parameters
    ----------
    X : array (n_samples, n_features)
        The features.
    labels : array (n_samples,) of str
        Pictures of different labels are twins only if they are the same file.
    hashes : array (n_samples,) of str or int
        Of the files' bytes, or other values that are the same for the same file only.
    threshold : float
        Two pictures of a label are twins from this cosine on, of their features less the mean of all: what is
        common to all pictures says nothing of two.

    Returns
    -------
    array (n_samples,) int64
        The number of each picture's group, from 0 in the order in which the groups begin.

    Notes
    -----
    Costs n_features multiplications for each pair of pictures of a label, and memory for two copies of
    the features of a label; `searchable_rows` says how many rows that allows. However many are alike, memory stays.
    """
    unit, (_, kinds) = unit_rows(X), np.unique(labels, return_inverse=True)
    pairs = [_neighbours_of(hashes)]
    for rows in locations_of(kinds):
        pairs.append(_near(unit, rows, threshold))
    return _in_order(_joined(np.arange(len(X)), pairs))


def near_duplicate_threshold(X: npt.NDArray[Any], labels: npt.NDArray[np.str_], *, random_state: int = 0) -> float:
    """Give the cosine from which on two pictures of a label are taken for twins.

    Pictures of different labels are no twins, however alike they look. So twins begin where those end: at the
    cosine that 99 of 100 pictures do not reach with any picture of another label, kept within 0.85 and 0.99.

    Parameters
    ----------
    X : array (n_samples, n_features)
        The features.
    labels : array (n_samples,) of str
        With one label only there is nothing to tell by, and 0.85 is given: rather too many twins than too few.
    random_state : int
        Seed of the draw of the pictures that are looked at: 2,000, or all if there are no more. Default 0.

    Returns
    -------
    float
        The `threshold` of `near_duplicate_groups`, a cosine of features less the mean of all.

    Notes
    -----
    Costs n_features multiplications for each of the pairs of 2,000 pictures with all, and memory for a copy of the
    features and 2,048 columns of such pairs.
    """
    if not len(X):
        return LEAST_THRESHOLD
    unit, (_, kinds) = unit_rows(X), np.unique(labels, return_inverse=True)
    drawn = np.arange(len(X))
    if len(X) > _DRAWN_ROWS:
        drawn = np.sort(np.random.default_rng(random_state).choice(len(X), _DRAWN_ROWS, replace=False))
    nearest = np.full(len(drawn), -1.0, np.float32)
    for start in range(0, len(X), _BLOCK_ROWS):
        block = slice(start, start + _BLOCK_ROWS)
        cosines = unit[drawn] @ unit[block].T
        cosines[kinds[drawn][:, None] == kinds[block]] = -1.0
        np.maximum(nearest, cosines.max(axis=1), out=nearest)
    reached = np.quantile(nearest, _STRANGERS, method="higher")
    beyond = float(np.nextafter(reached, np.float32(2.0)))  # who is just as near as the threshold reaches it
    return min(max(beyond, LEAST_THRESHOLD), MOST_THRESHOLD)


def searchable_rows(counts: npt.NDArray[Any], n_features: int) -> int:
    """Say among how many rows `near_duplicate_groups` finds twins in one to three minutes on two cores.

    Parameters
    ----------
    counts : array (n_classes,) of int
        Rows of each label; more or fewer would be of each label its share.
    n_features : int
        Numbers a row.

    Returns
    -------
    int
        So many that pairs of a label times features (and 64 for what a pair costs besides) are 2e12 at most.
    """
    work = float((counts.astype(np.float64) ** 2).sum()) / 2 * (n_features + _PAIR_WORK)
    return int(counts.sum() * (_MOST_WORK / max(work, 1.0)) ** 0.5)


def unit_rows(X: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Give rows less their mean, each of length 1 (or 0): array (n_samples, n_features) float32."""
    centred = np.asarray(X, np.float32) - X.mean(axis=0, dtype=np.float64).astype(np.float32)
    lengths = np.sqrt(np.einsum("ij,ij->i", centred, centred))[:, None]  # no copy of all, as of linalg.norm
    unit: npt.NDArray[np.float32] = np.divide(centred, lengths, out=centred, where=lengths > 0)
    return unit


def _neighbours_of(values: npt.NDArray[Any]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Give pairs that join all places of each value."""
    order = np.argsort(values, kind="stable")
    same = values[order][1:] == values[order][:-1]
    return order[:-1][same], order[1:][same]


def _near(
    unit: npt.NDArray[np.float32], rows: npt.NDArray[np.int64], threshold: float
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Give pairs that join the rows whose cosine is at least the threshold, each with the first of its group."""
    own, groups = unit[rows], np.arange(len(rows))
    starts = range(0, len(rows), _BLOCK_ROWS)
    for top in starts:
        found, n_found = [], 0
        for left in starts[top // _BLOCK_ROWS :]:
            ones, others = slice(top, top + _BLOCK_ROWS), slice(left, left + _BLOCK_ROWS)
            if (groups[ones] == groups[top]).all() and (groups[others] == groups[top]).all():
                continue  # all are joined already
            i, j = np.nonzero(own[ones] @ own[others].T >= threshold)
            found.append((top + i, left + j))
            n_found += len(i)
            if n_found > _MOST_PAIRS:
                groups, found, n_found = _joined(groups, found), [], 0
        groups = _joined(groups, found)
    _, first, inverse = np.unique(groups, return_index=True, return_inverse=True)
    return rows[first[inverse]], rows


def _joined(
    groups: npt.NDArray[np.int64], pairs: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]
) -> npt.NDArray[np.int64]:
    """Give the groups after those of each pair became one."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    if not pairs:
        return groups
    one, other = (groups[np.concatenate(ends)] for ends in zip(*pairs, strict=True))
    graph = coo_array((np.ones(len(one), bool), (one, other)), shape=(len(groups), len(groups)))
    found: npt.NDArray[np.int64] = connected_components(graph, directed=False)[1][groups]
    return found


def _in_order(groups: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Give groups new numbers, in the order in which they begin."""
    _, first, inverse = np.unique(groups, return_index=True, return_inverse=True)
    numbers = np.empty(len(first), np.int64)
    numbers[np.argsort(first)] = np.arange(len(first))
    found: npt.NDArray[np.int64] = numbers[inverse]
    return found
