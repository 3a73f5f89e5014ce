"""Near-duplicate pictures: the same file twice, or two views of one thing, such as frames of a turntable."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

LEAST_THRESHOLD, MOST_THRESHOLD = 0.85, 0.99  # below, pictures are of a kind only; above, rounding decides

_BLOCK_ROWS = 2_048  # of one label that are compared at once with all others of it
_DRAWN_ROWS = 2_000  # whose nearest picture of another label is looked for: the share is then known to 0.2 points
_STRANGERS = 0.99  # of the pictures, that share reaches the threshold with no picture of another label


def twin_groups(
    X: npt.NDArray[Any], labels: npt.NDArray[np.str_], hashes: npt.NDArray[np.str_], *, threshold: float
) -> npt.NDArray[np.int64]:
    """Group pictures that are twins, and twins of twins.

    Parameters
    ----------
    X : array (n_samples, n_features)
        The features.
    labels : array (n_samples,) of str
        Pictures of different labels are twins only if they are the same file.
    hashes : array (n_samples,) of str
        Of the files' bytes.
    threshold : float
        Two pictures of a label are twins from this cosine on, of their features less the mean of all: what is
        common to all pictures says nothing of two.

    Returns
    -------
    array (n_samples,) int64
        The number of each picture's group, from 0 in the order in which the groups begin.

    Notes
    -----
    Costs n_features multiplications for each pair of pictures of a label, and memory for 2,048 rows of such pairs.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    unit = unit_rows(X)
    pairs = [_neighbours_of(hashes)]
    for label in np.unique(labels):
        pairs.append(_near(unit, np.flatnonzero(labels == label), threshold))
    one, other = (np.concatenate(ends) for ends in zip(*pairs, strict=True))
    graph = coo_array((np.ones(len(one), bool), (one, other)), shape=(len(X), len(X)))
    _, groups = connected_components(graph, directed=False)
    return _in_order(groups)


def twin_threshold(X: npt.NDArray[Any], labels: npt.NDArray[np.str_], *, random_state: int = 0) -> float:
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
        The `threshold` of `twin_groups`, a cosine of features less the mean of all.

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


def unit_rows(X: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Give rows less their mean, each of length 1 (or 0): array (n_samples, n_features) float32."""
    centred = np.asarray(X, np.float32) - X.mean(axis=0, dtype=np.float64).astype(np.float32)
    lengths = np.linalg.norm(centred, axis=1, keepdims=True)
    unit: npt.NDArray[np.float32] = np.divide(centred, lengths, out=np.zeros_like(centred), where=lengths > 0)
    return unit


def _neighbours_of(values: npt.NDArray[Any]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Give pairs that join all places of each value."""
    order = np.argsort(values, kind="stable")
    same = values[order][1:] == values[order][:-1]
    return order[:-1][same], order[1:][same]


def _near(
    unit: npt.NDArray[np.float32], rows: npt.NDArray[np.int64], threshold: float
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Give the pairs of some rows whose cosine is at least the threshold."""
    own = unit[rows]
    ones, others = [rows[:0]], [rows[:0]]
    for start in range(0, len(rows), _BLOCK_ROWS):
        block = own[start : start + _BLOCK_ROWS]
        i, j = np.nonzero(block @ own[start:].T >= threshold)
        later = j > i  # each pair once
        ones.append(rows[start + i[later]])
        others.append(rows[start + j[later]])
    return np.concatenate(ones), np.concatenate(others)


def _in_order(groups: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Give groups new numbers, in the order in which they begin."""
    _, first, inverse = np.unique(groups, return_index=True, return_inverse=True)
    numbers = np.empty(len(first), np.int64)
    numbers[np.argsort(first)] = np.arange(len(first))
    found: npt.NDArray[np.int64] = numbers[inverse]
    return found
