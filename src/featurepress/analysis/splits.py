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
_FOLDS = 4  # a drawn split tests a quarter


@dataclass(frozen=True)
class Split:
    """Which rows train and which test.

    Attributes
    ----------
    train, test : array of int64
        Numbers of rows, in order.
    n_twins : int
        Test pictures that were dropped, because a twin of theirs trains.
    not_evaluable : tuple of str
        Classes without a picture to test.
    reason : str
        Why nothing can be measured with it; "" if it can.
    """

    train: Rows
    test: Rows
    n_twins: int = 0
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
        Of `featurepress.analysis.twins.twin_groups`, over training and test together; without them it is naive.
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
    Pictures of a class that is one group only all train: there is nothing to test it with.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    own = np.arange(len(y)) if groups is None else groups
    can_test = np.isin(y, [label for label in np.unique(y) if len(np.unique(own[y == label])) > 1])
    can_test &= np.isin(own, own[~can_test], invert=True)  # the same file under two labels joins their groups
    free = np.flatnonzero(can_test)
    test = free[:0]
    if len(np.unique(own[free])) >= _FOLDS:
        folds = StratifiedGroupKFold(_FOLDS, shuffle=True, random_state=random_state)
        _, chosen = next(_quietly(folds, free, y, own))
        test = free[np.sort(chosen)]
    untaught = test[np.isin(y[test], np.delete(y, test), invert=True)]  # a class that is tested only
    test = test[np.isin(own[test], own[untaught], invert=True)]
    train = np.setdiff1d(np.arange(len(y)), test)
    without = tuple(sorted(set(y.tolist()) - set(y[test].tolist())))
    return Split(train, test, 0, without, _too_few(len(test), 0))


def _quietly(folds: Any, free: Rows, y: Labels, own: Rows) -> Any:
    """Split without the warning that a class has fewer pictures than there are folds."""
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        yield from folds.split(free, y[free], own[free])


def _too_few(n_test: int, n_twins: int) -> str:
    if n_test >= LEAST_TEST:
        return ""
    dropped = f", {n_twins} with a twin in training were dropped" if n_twins else ""
    left = "1 test picture is" if n_test == 1 else f"{n_test} test pictures are"
    return f"{left} left{dropped}; {LEAST_TEST} are needed"
