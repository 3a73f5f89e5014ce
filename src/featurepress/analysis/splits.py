"""Split rows into training and test, with or without near-duplicates on both sides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    Rows = npt.NDArray[np.int64]
    Labels = npt.NDArray[np.str_]

LEAST_TEST = 30  # with fewer images, the 95 % interval of an accuracy of 90 % exceeds 11 points to either side
_TEST_SHARE = 1 / 4


@dataclass(frozen=True)
class Split:
    """Training rows and test rows.

    Attributes
    ----------
    train, test : array of int64
        Row numbers, ascending.
    n_near_duplicates : int
        Test images that were left out because they have a near-duplicate in training.
    not_evaluable : tuple of str
        Classes without test images.
    reason : str
        Why nothing can be measured with this split; "" if it can.
    """

    train: Rows
    test: Rows
    n_near_duplicates: int = 0
    not_evaluable: tuple[str, ...] = ()
    reason: str = ""


def given_split(y: Labels, is_test: npt.NDArray[np.bool_], groups: Rows | None = None) -> Split:
    """Return the split of `is_test`, array (n_samples,) bool.

    With `groups`, those of `near_duplicate_groups` for all rows, it leaves out the test images that have a
    near-duplicate in training. Without groups it is naive.
    """
    train, candidates = np.flatnonzero(~is_test), np.flatnonzero(is_test)
    test = candidates if groups is None else candidates[~np.isin(groups[candidates], groups[train])]
    emptied = sorted(set(y[candidates].tolist()) - set(y[test].tolist()))
    reason = _too_few(len(test), len(candidates) - len(test))
    if emptied and not reason:
        more = f" and {len(emptied) - 1} more" if len(emptied) > 1 else ""
        reason = f"all test images of '{emptied[0]}'{more} have a near-duplicate in training"
    without = tuple(sorted(set(y.tolist()) - set(y[test].tolist())))
    return Split(train, test, len(candidates) - len(test), without, reason)


def drawn_split(y: Labels, groups: Rows | None = None, *, random_state: int = 0) -> Split:
    """Return a stratified random split with a quarter of the images for testing; groups are never divided.

    `y` and `groups` are as for `given_split`. If a class has a single group, all its images are for training and
    the class is not tested. Time: a sort of the rows, seconds for a million, for any number of classes.
    """
    own = np.arange(len(y)) if groups is None else groups
    labels, kinds = np.unique(y, return_inverse=True)
    can_test = (_n_groups(kinds, own, len(labels)) > 1)[kinds]
    can_test &= np.isin(own, own[~can_test], invert=True)  # copies of a file under two labels share a group
    free = np.flatnonzero(can_test)
    test = free[_drawn_groups(kinds[free], own[free], random_state)]
    untaught = test[np.isin(y[test], np.delete(y, test), invert=True)]  # classes without training rows
    test = test[np.isin(own[test], own[untaught], invert=True)]
    train = np.setdiff1d(np.arange(len(y)), test)
    without = tuple(sorted(set(y.tolist()) - set(y[test].tolist())))
    return Split(train, test, 0, without, _too_few(len(test), 0))


def locations_of(kinds: npt.NDArray[Any]) -> list[npt.NDArray[np.int64]]:
    """Return the indices of each distinct value, in the order of the values: ascending int64 arrays."""
    order, counts = np.argsort(kinds, kind="stable"), np.unique(kinds, return_counts=True)[1]
    return np.split(order, np.cumsum(counts)[:-1]) if len(counts) else []


def _n_groups(kinds: Rows, own: Rows, n_kinds: int) -> Rows:
    """Return the number of groups of each class."""
    _, numbers = np.unique(own, return_inverse=True)
    pairs = np.unique(kinds.astype(np.int64) * (len(own) + 1) + numbers)
    return np.bincount(pairs // (len(own) + 1), minlength=n_kinds)


def _drawn_groups(kinds: Rows, own: Rows, random_state: int) -> npt.NDArray[np.bool_]:
    """Return which rows test: random groups up to a quarter of each class, counted by their first row's class."""
    _, first, numbers, sizes = np.unique(own, return_index=True, return_inverse=True, return_counts=True)
    kind_of, tests = kinds[first], np.zeros(len(sizes), bool)
    wanted = np.ceil(np.bincount(kind_of, sizes) * _TEST_SHARE)
    left, order = wanted.tolist(), np.random.default_rng(random_state).permutation(len(sizes))
    for group, kind, size in zip(order.tolist(), kind_of[order].tolist(), sizes[order].tolist(), strict=True):
        if size <= left[kind]:
            tests[group] = True
            left[kind] -= size
    by_size = order[np.argsort(sizes[order], kind="stable")]
    smallest = by_size[np.unique(kind_of[by_size], return_index=True)[1]]
    untested = np.array(left) == wanted  # classes whose groups all exceed a quarter of the class
    tests[smallest[untested[kind_of[smallest]]]] = True
    found: npt.NDArray[np.bool_] = tests[numbers]
    return found


def _too_few(n_test: int, n_near_duplicates: int) -> str:
    if n_test >= LEAST_TEST:
        return ""
    dropped = f" ({n_near_duplicates} near-duplicates of training images are left out)" if n_near_duplicates else ""
    left = "1 test image is" if n_test == 1 else f"{n_test} test images are"
    return f"{left} left{dropped}, at least {LEAST_TEST} are needed"
