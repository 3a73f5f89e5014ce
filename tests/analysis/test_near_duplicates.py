"""Groups of near-duplicates equal those of a plain search through all pairs."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest

from featurepress.analysis import near_duplicates
from featurepress.analysis.near_duplicates import (
    near_duplicate_groups,
    near_duplicate_threshold,
    searchable_rows,
    unit_rows,
)


def plain(X: Any, labels: Any, hashes: Any, threshold: float) -> list[int]:
    """Group by the definition, pair by pair."""
    centred = X - X.mean(axis=0)
    unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    group = list(range(len(X)))
    for i in range(len(X)):
        for j in range(i):
            is_near = labels[i] == labels[j] and unit[i] @ unit[j] >= threshold
            if is_near or hashes[i] == hashes[j]:
                old, new = group[i], group[j]
                group = [new if one == old else one for one in group]
    numbers: dict[int, int] = {}
    return [numbers.setdefault(one, len(numbers)) for one in group]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("block", "most_pairs"), [(3, 2), (3, 4_000_000), (2_048, 4_000_000)])
def test_groups_are_those_of_the_definition(
    seed: int, block: int, most_pairs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(near_duplicates, "_BLOCK_ROWS", block)
    monkeypatch.setattr(near_duplicates, "_MOST_PAIRS", most_pairs)
    draw = np.random.default_rng(seed)
    centres = draw.standard_normal((9, 16)) * 3
    X = (centres[draw.integers(0, 9, 60)] + draw.standard_normal((60, 16))).astype(np.float32)
    labels = draw.choice(["apple", "banana", "cherry"], 60)
    hashes = draw.choice([f"{i:02d}" for i in range(55)], 60)
    groups = near_duplicate_groups(X, labels, hashes, threshold=0.9)
    assert groups.tolist() == plain(X.astype(np.float64), labels, hashes, 0.9)
    assert 1 < len(set(groups)) < 60


def test_frames_of_a_turntable_are_one_group() -> None:
    angles = np.linspace(0, np.pi, 40)
    X = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    X = np.concatenate([X, -X])  # so that the mean is zero
    labels = np.repeat(["front", "back"], 40)
    groups = near_duplicate_groups(X, labels, np.arange(80).astype(str), threshold=0.99)
    assert groups.tolist() == [0] * 40 + [1] * 40


def test_many_near_duplicates_need_no_memory_for_all_pairs() -> None:
    draw = np.random.default_rng(0)
    X = np.repeat([[1.0, 0.0], [-1.0, 0.0]], 12_000, axis=0) + 0.001 * draw.normal(size=(24_000, 2))
    labels = np.repeat(["one", "other"], 12_000)
    tracemalloc.start()
    groups = near_duplicate_groups(X.astype(np.float32), labels, np.arange(24_000), threshold=0.9)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert groups.tolist() == [0] * 12_000 + [1] * 12_000
    assert peak_bytes < 600e6  # all pairs would be 2.3 GB


def test_the_number_of_searched_rows_is_limited() -> None:
    even = np.full(100, 10_000)
    assert searchable_rows(even, 64) > even.sum()
    few = searchable_rows(np.full(2, 500_000), 64)
    assert 200_000 < few < 300_000
    assert searchable_rows(np.full(2, few // 2), 64) == pytest.approx(few, rel=1e-3)  # that many are all searched
    assert searchable_rows(np.array([0]), 64) == 0


def test_equal_files_of_different_labels_are_near_duplicates() -> None:
    X = np.eye(4, dtype=np.float32)
    groups = near_duplicate_groups(X, np.array(["a", "b", "c", "d"]), np.array(["x", "y", "x", "z"]), threshold=0.9)
    assert groups.tolist() == [0, 1, 0, 2]


def test_equal_images_have_no_direction() -> None:
    assert np.array_equal(unit_rows(np.ones((3, 2), np.float32)), np.zeros((3, 2)))
    groups = near_duplicate_groups(np.ones((3, 2)), np.array(["a"] * 3), np.array(["1", "2", "3"]), threshold=0.9)
    assert groups.tolist() == [0, 1, 2]


# -- from which cosine on ------------------------------------------------------------------------------------


def nearest_strangers(X: Any, labels: Any) -> list[float]:
    """Return the largest cosine of each image with one of another label, by the definition."""
    centred = X - X.mean(axis=0)
    unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    cosines = np.where(labels[:, None] == labels, -1.0, unit @ unit.T)
    nearest: list[float] = cosines.max(axis=1).tolist()
    return nearest


def alike(n_samples: int, spread: float, seed: int = 0) -> tuple[Any, Any]:
    """Return images of objects with two labels each; a wider spread makes them less similar."""
    draw = np.random.default_rng(seed)
    centres, things = draw.standard_normal((6, 12)) * 3, draw.integers(0, 6, n_samples)
    X = centres[things] + spread * draw.standard_normal((n_samples, 12))
    return X.astype(np.float32), draw.choice(["apple", "banana"], n_samples)


@pytest.mark.parametrize("block", [7, 2_048])
@pytest.mark.parametrize("seed", range(4))
def test_threshold_is_what_99_of_100_do_not_reach(seed: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_duplicates, "_BLOCK_ROWS", block)
    X, labels = alike(300, 1.5, seed)
    nearest = nearest_strangers(X.astype(np.float64), labels)
    threshold = near_duplicate_threshold(X, labels)
    assert 0.85 < threshold < 0.99
    assert sum(cosine > threshold + 1e-6 for cosine in nearest) <= 3  # single precision against double
    assert sum(cosine > threshold - 1e-6 for cosine in nearest) >= 2  # and no higher than it must be


def test_threshold_stays_between_what_is_a_kind_and_what_is_rounding() -> None:
    assert near_duplicate_threshold(*alike(300, 0.01)) == 0.99
    draw = np.random.default_rng(0)
    assert near_duplicate_threshold(draw.standard_normal((200, 64)), draw.choice(["a", "b"], 200)) == 0.85


def test_threshold_without_another_label_is_the_lowest() -> None:
    X, _ = alike(30, 1.0)
    assert near_duplicate_threshold(X, np.array(["apple"] * 30)) == 0.85
    assert near_duplicate_threshold(X[:0], np.array([], np.str_)) == 0.85


def test_the_threshold_of_many_images_is_estimated_from_a_sample(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    X, labels = alike(600, 1.5)
    every = near_duplicate_threshold(X, labels)
    monkeypatch.setattr(near_duplicates, "_SAMPLE_ROWS", 150)
    drawn = [near_duplicate_threshold(X, labels, random_state=seed) for seed in (0, 0, 1, 2)]
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) > 1
    assert drawn == pytest.approx([every] * 4, abs=0.02)
