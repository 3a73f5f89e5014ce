"""The table of quality: numbers are rounded, near-duplicates stay together, PCA is fitted to training rows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import quality
from benchmarks.quality import ImageSet, Scheme, are_correct, folds_of, lines, measure, rounded, schemes_of, share

DOCUMENT = Path(__file__).parents[2] / "docs" / "explanation" / "quality.md"


def drawn(n_each: int = 20, n_features: int = 12, *, has_split: bool = False, spread: float = 1.0) -> ImageSet:
    """Return images of three fruits in turn; every fourth is for testing."""
    draw = np.random.default_rng(0)
    kinds = np.arange(3 * n_each) % 3
    X = draw.standard_normal((3, n_features))[kinds] * 3 + spread * draw.standard_normal((len(kinds), n_features))
    y = np.array(["apple", "banana", "cherry"])[kinds]
    is_test = np.arange(len(kinds)) % 4 == 0 if has_split else None
    hashes = np.array([f"{i}" for i in range(len(kinds))])
    return ImageSet(X.astype(np.float32), y, hashes, is_test, {n_features: 99.6, 2: 10.0})


# -- storage -------------------------------------------------------------------------------------------------


def test_bfloat16_rounds_to_the_nearest_and_then_to_even() -> None:
    step = 2.0**-7  # between neighbours from 1 to 2
    given = [1.0, 1 + step * 0.49, 1 + step * 0.51, 1 + step * 0.5, 1 + step * 1.5, -1 - step * 1.5, 0.0, 255.9]
    found = rounded(np.array(given, np.float32), "bfloat16")
    assert found.tolist() == [1.0, 1.0, 1 + step, 1.0, 1 + 2 * step, -1 - 2 * step, 0.0, 256.0]


@pytest.mark.parametrize(("stored", "digits"), [("bfloat16", 8), ("float16", 11)])
def test_rounding_errors_of_two_bytes(stored: str, digits: int) -> None:
    X = np.random.default_rng(0).uniform(0.01, 6, 10_000).astype(np.float32)
    error = np.abs(rounded(X, stored) - X) / X
    assert 0.9 * 2.0**-digits < error.max() <= 2.0**-digits
    assert np.array_equal(rounded(rounded(X, stored), stored), rounded(X, stored))
    assert rounded(X, "float32") is X


def test_each_type_has_its_bytes() -> None:
    images = drawn()
    found = [line.split(" | ") for line in lines("m", images, schemes_of(images, np.arange(60)), 2)]
    assert [cells[2:5] for cells in found] == [["float32", "8", "10"], ["bfloat16", "4", ""], ["float16", "4", ""]]


# -- folds ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 4])
def test_every_image_is_tested_once_and_groups_stay_on_one_side(size: int) -> None:
    images = drawn(40)
    groups = np.arange(len(images.y)) // 3 // size * 3 + np.arange(len(images.y)) % 3  # of one fruit each
    folds = folds_of(images.y, groups)
    assert sorted(np.concatenate([fold.test for fold in folds]).tolist()) == list(range(120))
    for fold in folds:
        assert not np.isin(groups[fold.test], groups[fold.train]).any()
        assert len(fold.train) + len(fold.test) == 120
        assert len(np.unique(images.y[fold.test])) == 3


@pytest.mark.parametrize("is_grouped", [False, True])
def test_a_class_with_one_training_image_is_left_out_of_that_fold(is_grouped: bool) -> None:
    y = np.array(["apple"] * 20 + ["banana"] * 20 + ["kiwi"] * 2)
    folds = folds_of(y, np.arange(42) if is_grouped else None)
    assert sum(fold.n_left_out for fold in folds) == 2
    assert "kiwi" not in y[np.concatenate([fold.test for fold in folds])]
    for fold in folds:
        assert (y[fold.train] == "kiwi").sum() in (0, 2)


def test_a_class_with_one_group_is_left_out() -> None:
    y = np.array(["apple"] * 20 + ["banana"] * 20 + ["kiwi"] * 6)
    folds = folds_of(y, np.array([*range(40), *[40] * 6]))
    assert sum(fold.n_left_out for fold in folds) == 6


def test_images_with_a_near_duplicate_in_training_count_only_for_the_naive_accuracy() -> None:
    images = drawn(has_split=True)
    groups = np.arange(60)
    groups[4] = groups[7]  # 4 is for testing, 7 for training, both are bananas
    (scheme,) = schemes_of(images, groups)
    assert scheme.counted["naive"].tolist() == list(range(0, 60, 4))
    assert scheme.counted["leak-aware"].tolist() == [row for row in range(0, 60, 4) if row != 4]
    cells = quality.described("m", images, (scheme,), ["0.900", "59"])
    assert cells == ["60, 3", "m", "0.900", "59", "15 of 3", "14 of 3", "0", "1"]


# -- what is fitted ------------------------------------------------------------------------------------------


def test_the_pca_is_fitted_to_training_images_only() -> None:
    """Distant test images would change the components."""
    images = drawn(has_split=True)
    assert images.is_test is not None
    train = np.flatnonzero(~images.is_test)
    far = images.X.copy()
    far[images.is_test] *= 1_000
    mine, theirs = (quality.numbers_of(replace(images, X=X), train, 2)[train] for X in (images.X, far))
    assert np.array_equal(mine, theirs)


def test_accuracy_is_high_with_true_and_low_with_shuffled_labels() -> None:
    images = drawn(40, spread=0.3)
    scheme = Scheme(folds_of(images.y, None), None, {})
    shuffled = replace(images, y=np.random.default_rng(1).permutation(images.y))
    for n_numbers in (12, 2):
        right = are_correct(images, scheme, n_numbers, 1.0)
        by_chance = are_correct(shuffled, Scheme(folds_of(shuffled.y, None), None, {}), n_numbers, 1.0)
        assert len(right) == 6
        for key, rows in right.items():
            assert rows.mean() > 0.95, key
            assert 0.15 < by_chance[key].mean() < 0.55, key


# -- the document --------------------------------------------------------------------------------------------


def test_a_share_has_its_interval() -> None:
    assert share(90, 100) == "90.0 (82.6 to 94.5)"  # Wilson's, as statsmodels' proportion_confint gives it
    assert share(0, 0) == "nothing to test"


def test_the_document_has_the_printed_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality, "COMPONENTS", (2,))
    printed = list(measure("fruits", {"embedded": drawn(has_split=True), "imagenet": drawn(has_split=True)}))
    text = DOCUMENT.read_text(encoding="utf-8")
    headings: list[Any] = [line for line in printed if line.startswith(("| images, classes", "| model"))]
    assert len(headings) == 2
    for heading in headings:
        assert text.count(heading + "\n|---") == len(quality.SETS)
    shape = [line.split(" | ")[:3] for line in printed if "float" in line]
    assert shape[3] == ["| embedded", "2", "float32"]
    assert len(shape) == 2 * 2 * 3
    for name in quality.SETS:
        assert f"\n## {name}\n" in text
