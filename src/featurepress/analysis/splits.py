"""Training and test pictures: naive, and so that no picture has a near-duplicate on the other side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    Rows = npt.NDArray[np.int64]
    Labels = npt.NDArray[np.str_]

LEAST_TEST = 30  # pictures: with fewer, an accuracy of 90 % has an interval of 11 points to either side
_SHARE = 1 / 4  # that a drawn split tests


@dataclass(frozen=True)
class Split:
    """Which rows train and which test.

    Attributes
    ----------
    train, test : array of int64
        Numbers of rows, in order.
    n_near_duplicates : int
        Test pictures that were dropped, because a twin of theirs trains.
    not_evaluable : tuple of str
        Classes without a picture to test.
    reason : str
        Why nothing can be measured with it; "" if it can.
    """

    train: Rows
    test: Rows
    n_near_duplicates: int = 0
    not_evaluable: tuple[str, ...] = ()
    reason: str = ""


def given_split(y: Labels, is_test: npt.NDArray[np.bool_], groups: Rows | None = None) -> Split:
    """Take a split as it is given; with groups of twins, drop test pictures with a twin in training.

    Parameters
    ----------
    y : array (n_samples,) of str
        The labels.
    is_test : array (n_samples,) bool
        Which rows are given as test.
    groups : array (n_samples,) int64, optional
        Of `near_duplicates.near_duplicate_groups`, over training and test together; without them it is naive.
    """
    train, given = np.flatnonzero(~is_test), np.flatnonzero(is_test)
    test = given if groups is None else given[~np.isin(groups[given], groups[train])]
    emptied = sorted(set(y[given].tolist()) - set(y[test].tolist()))
    reason = _too_few(len(test), len(given) - len(test))
    if emptied and not reason:
        more = f" and {len(emptied) - 1} more" if len(emptied) > 1 else ""
        reason = f"all test pictures of '{emptied[0]}'{more} have a twin in training"
    without = tuple(sorted(set(y.tolist()) - set(y[test].tolist())))
    return Split(train, test, len(given) - len(test), without, reason)


def drawn_split(y: Labels, groups: Rows | None = None, *, random_state: int = 0) -> Split:
    """Draw a quarter of the pictures to test, of each class its share; groups of twins stay whole.

    Parameters
    ----------
    y : array (n_samples,) of str
        The labels.
    groups : array (n_samples,) int64, optional
        As of `given_split`; without them every picture stands alone, which is naive.
    random_state : int
        Seed of the draw.

    Notes
    -----
    Pictures of a class that is one group only all train: there is nothing to test it with. Costs a sort of the
    pictures, and memory for a few numbers of each: a million in seconds, whatever the number of classes.
    """
    own = np.arange(len(y)) if groups is None else groups
    labels, kinds = np.unique(y, return_inverse=True)
    can_test = (_n_groups(kinds, own, len(labels)) > 1)[kinds]
    can_test &= np.isin(own, own[~can_test], invert=True)  # the same file under two labels joins their groups
    free = np.flatnonzero(can_test)
    test = free[_drawn_groups(kinds[free], own[free], random_state)]
    untaught = test[np.isin(y[test], np.delete(y, test), invert=True)]  # a class that is tested only
    test = test[np.isin(own[test], own[untaught], invert=True)]
    train = np.setdiff1d(np.arange(len(y)), test)
    without = tuple(sorted(set(y.tolist()) - set(y[test].tolist())))
    return Split(train, test, 0, without, _too_few(len(test), 0))


def locations_of(kinds: npt.NDArray[Any]) -> list[npt.NDArray[np.int64]]:
    """Give the places of each value, in the order of the values: ascending int64 arrays."""
    order, counts = np.argsort(kinds, kind="stable"), np.unique(kinds, return_counts=True)[1]
    return np.split(order, np.cumsum(counts)[:-1]) if len(counts) else []


def _n_groups(kinds: Rows, own: Rows, n_kinds: int) -> Rows:
    """Count the groups of each class."""
    _, numbers = np.unique(own, return_inverse=True)
    pairs = np.unique(kinds.astype(np.int64) * (len(own) + 1) + numbers)
    return np.bincount(pairs // (len(own) + 1), minlength=n_kinds)


def _drawn_groups(kinds: Rows, own: Rows, random_state: int) -> npt.NDArray[np.bool_]:
    """Draw whole groups until a quarter of each class tests; a group of several counts as of its first row's."""
    _, first, numbers, sizes = np.unique(own, return_index=True, return_inverse=True, return_counts=True)
    kind_of, tests = kinds[first], np.zeros(len(sizes), bool)
    wanted = np.ceil(np.bincount(kind_of, sizes) * _SHARE)
    left, order = wanted.tolist(), np.random.default_rng(random_state).permutation(len(sizes))
    for group, kind, size in zip(order.tolist(), kind_of[order].tolist(), sizes[order].tolist(), strict=True):
        if size <= left[kind]:
            tests[group] = True
            left[kind] -= size
    by_size = order[np.argsort(sizes[order], kind="stable")]
    smallest = by_size[np.unique(kind_of[by_size], return_index=True)[1]]
    untested = np.array(left) == wanted  # classes all of whose groups are larger than a quarter of them
    tests[smallest[untested[kind_of[smallest]]]] = True
    found: npt.NDArray[np.bool_] = tests[numbers]
    return found


def _too_few(n_test: int, n_near_duplicates: int) -> str:
    if n_test >= LEAST_TEST:
        return ""
    dropped = f", {n_near_duplicates} with a twin in training were dropped" if n_near_duplicates else ""
    left = "1 test picture is" if n_test == 1 else f"{n_test} test pictures are"
    return f"{left} left{dropped}; {LEAST_TEST} are needed"
