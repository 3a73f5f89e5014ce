"""Splits keep near-duplicates together and are stratified; too few test images are a reason."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurepress.analysis.splits import LEAST_TEST, drawn_split, given_split


def labelled(counts: dict[str, int], group_size: int, seed: int = 0) -> tuple[Any, Any]:
    """Return labels, and groups of images of a class, all shuffled."""
    y = np.concatenate([np.repeat(name, n) for name, n in counts.items()])
    groups, number = np.empty(len(y), np.int64), 0
    for name in counts:
        own = np.flatnonzero(y == name)
        groups[own] = number + np.arange(len(own)) // group_size
        number = groups.max() + 1
    order = np.random.default_rng(seed).permutation(len(y))
    return y[order], groups[order]


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(1, 60), min_size=1, max_size=6),
    group_size=st.integers(1, 9),
    seed=st.integers(0, 10**6),
)
def test_no_group_is_on_both_sides_and_no_image_is_lost(counts: list[int], group_size: int, seed: int) -> None:
    y, groups = labelled({f"class {i}": n for i, n in enumerate(counts)}, group_size, seed)
    split = drawn_split(y, groups, random_state=seed)
    assert not set(groups[split.train]) & set(groups[split.test])
    assert sorted([*split.train, *split.test]) == list(range(len(y)))
    assert set(y[split.test]) <= set(y[split.train])
    assert set(split.not_evaluable) == set(y) - set(y[split.test])
    assert bool(split.reason) == (len(split.test) < LEAST_TEST)
    for label in set(y):
        if len(set(groups[y == label])) == 1:
            assert label in split.not_evaluable
            assert set(np.flatnonzero(y == label)) <= set(split.train)


def test_every_class_is_tested_by_about_a_quarter() -> None:
    y, groups = labelled({"apple": 200, "banana": 80, "cherry": 400}, 4)
    split = drawn_split(y, groups)
    for label in ("apple", "banana", "cherry"):
        assert (y[split.test] == label).mean() == pytest.approx((y == label).mean(), abs=0.03)
    assert len(split.test) == pytest.approx(170, abs=12)
    assert (split.n_near_duplicates, split.not_evaluable, split.reason) == (0, (), "")
    assert np.array_equal(drawn_split(y, groups).test, split.test)
    assert not np.array_equal(drawn_split(y, groups, random_state=1).test, split.test)


def test_a_class_of_few_large_groups_is_tested_by_the_smallest() -> None:
    y = np.array(["apple"] * 8 + ["plum"] * 200)
    groups = np.array([0] * 5 + [1] * 3 + list(range(2, 202)))
    for seed in range(5):
        split = drawn_split(y, groups, random_state=seed)
        assert split.test[:3].tolist() == [5, 6, 7]
        assert len(split.test) == 53


def test_a_thousand_classes_are_drawn_at_once() -> None:
    """Its memory does not grow with classes times groups, which would be 800 MB here."""
    y = np.char.add("class ", np.repeat(np.arange(1_000), 100).astype(str))
    started = time.process_time()
    split = drawn_split(y, np.arange(100_000) // 2)
    assert time.process_time() - started < 10.0  # seconds; by scikit-learn's StratifiedGroupKFold minutes
    assert len(split.test) == 24_000  # pairs: 24 of each hundred
    assert split.not_evaluable == ()


def test_a_file_under_two_labels_stays_on_one_side() -> None:
    y, groups = labelled({"apple": 60, "banana": 60}, 1)
    one, other = np.flatnonzero(y == "apple")[0], np.flatnonzero(y == "banana")[0]
    groups[one] = groups[other]
    for seed in range(20):
        split = drawn_split(y, groups, random_state=seed)
        assert (one in split.test) == (other in split.test)


def test_turntables_leave_nothing_to_test() -> None:
    """Each class is one group: only the naive split has test images."""
    y, groups = labelled({"apple": 100, "banana": 100}, 100)
    assert len(drawn_split(y).test) == 50
    aware = drawn_split(y, groups)
    assert (len(aware.test), aware.not_evaluable) == (0, ("apple", "banana"))
    assert aware.reason.startswith("0 test images are left, at least 30")


def test_a_given_split_drops_test_images_with_a_near_duplicate_in_training() -> None:
    y, groups = labelled({"apple": 200, "banana": 200}, 2)
    is_test = np.random.default_rng(0).random(400) < 0.5
    naive, aware = given_split(y, is_test), given_split(y, is_test, groups)
    assert np.array_equal(naive.test, np.flatnonzero(is_test))
    assert np.array_equal(naive.train, aware.train)
    expected = [i for i in naive.test if not (groups[naive.train] == groups[i]).any()]
    assert aware.test.tolist() == expected
    assert aware.n_near_duplicates == len(naive.test) - len(expected) > 0
    assert (naive.n_near_duplicates, naive.reason, aware.reason) == (0, "", "")


def test_a_given_split_with_too_few_left_or_a_class_emptied_is_not_measurable() -> None:
    y, groups = labelled({"apple": 100, "banana": 100}, 2)
    is_test = np.random.default_rng(0).random(200) < 0.5
    few = given_split(y, is_test, np.zeros(200, np.int64))
    assert few.reason.startswith(f"0 test images are left ({is_test.sum()} near-duplicates")
    groups = np.where(y == "apple", np.arange(200), 1_000)
    emptied = given_split(y, is_test, groups)
    assert emptied.reason == "all test images of 'banana' have a near-duplicate in training"
    assert emptied.not_evaluable == ("banana",)
    assert (y[emptied.test] == "apple").all()
