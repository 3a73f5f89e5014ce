"""Scores equal examples computed by hand and the functions of scikit-learn."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, top_k_accuracy_score

from featurepress.analysis.scores import Bin, score, wilson_interval
from featurepress.errors import AnalysisError

CLASSES = np.array(["apple", "banana", "cherry", "date"])


def drawn(n: int, seed: int = 0) -> tuple[Any, Any]:
    draw = np.random.default_rng(seed)
    y = draw.choice(CLASSES, n)
    scores = draw.standard_normal((n, 4)) + 1.5 * (y[:, None] == CLASSES)
    powers = np.exp(scores)
    return y, powers / powers.sum(axis=1, keepdims=True)


def test_scores_of_a_small_example() -> None:
    y = np.array(["apple", "apple", "banana", "fig"])
    probabilities = np.array([[0.9, 0.1, 0, 0], [0.2, 0.7, 0.1, 0], [0.1, 0.75, 0.1, 0.05], [0.4, 0.3, 0.2, 0.1]])
    found = score(y, probabilities, CLASSES)
    assert (found.n_samples, found.accuracy, found.top_3) == (4, 0.5, 0.75)
    assert found.labels == ("apple", "banana", "cherry", "date", "fig")
    assert found.confusion[0] == (1, 1, 0, 0, 0)
    assert found.confusion[4] == (1, 0, 0, 0, 0)
    assert [(one.label, one.n_samples) for one in found.classes] == [("apple", 2), ("banana", 1), ("fig", 1)]
    assert (found.classes[0].precision, found.classes[0].recall) == (0.5, 0.5)
    assert (found.classes[1].precision, found.classes[1].recall) == (0.5, 1.0)
    assert (found.classes[2].recall, found.classes[2].f1) == (0.0, 0.0)
    assert found.macro_f1 == pytest.approx((0.5 + 2 / 3 + 0) / 3)
    assert found.reliability == (Bin(1, 0.4, 0.0), Bin(2, 0.725, 0.5), Bin(1, 0.9, 1.0))
    assert found.calibration_error == pytest.approx((0.4 + 2 * 0.225 + 0.1) / 4)
    assert json.loads(json.dumps(asdict(found)))["interval"] == list(found.interval)


@pytest.mark.parametrize("seed", range(5))
def test_scores_equal_scikit_learns(seed: int) -> None:
    y, probabilities = drawn(300, seed)
    found, predicted = score(y, probabilities, CLASSES), CLASSES[probabilities.argmax(axis=1)]
    assert found.accuracy == pytest.approx(accuracy_score(y, predicted))
    assert found.macro_f1 == pytest.approx(f1_score(y, predicted, average="macro"))
    assert found.top_3 == pytest.approx(top_k_accuracy_score(y, probabilities, k=3, labels=CLASSES))
    assert np.trace(np.array(found.confusion)) == round(found.accuracy * 300)
    assert sum(one.n_samples for one in found.reliability) == 300


@pytest.mark.parametrize(("n_right", "n"), [(0, 30), (30, 30), (15, 30), (499, 500), (1, 1)])
def test_the_interval_is_wilsons(n_right: int, n: int) -> None:
    z = 1.959963984540054
    middle, spread = n_right + z**2 / 2, z * (n_right * (n - n_right) / n + z**2 / 4) ** 0.5
    ends = (middle - spread) / (n + z**2), (middle + spread) / (n + z**2)
    assert wilson_interval(n_right, n) == pytest.approx(ends, abs=1e-12)


def test_certain_and_correct_predictions_are_calibrated() -> None:
    y = np.repeat(CLASSES, 10)
    found = score(y, (y[:, None] == CLASSES).astype(float), CLASSES)
    assert (found.accuracy, found.calibration_error, found.macro_f1) == (1.0, 0.0, 1.0)
    assert found.reliability == (Bin(40, 1.0, 1.0),)


def test_no_images_are_refused() -> None:
    with pytest.raises(AnalysisError, match="no test images"):
        score(np.array([], np.str_), np.empty((0, 4)), CLASSES)
