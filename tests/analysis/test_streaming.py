from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from featurepress.analysis import Classifier
from featurepress.analysis.samples import read_samples
from featurepress.analysis.streaming import fit_streamed
from featurepress.errors import AnalysisError
from tests.analysis.clouds import cloud, cloud_set


@pytest.mark.parametrize("balanced", [False, True])
def test_centroids_are_the_same_as_in_memory(balanced: bool, tmp_path: Path) -> None:
    features = cloud_set(tmp_path / "out", 300, rows_a_part=37)
    samples = read_samples(features).take(np.arange(20, 300))
    streamed = fit_streamed(Classifier("centroid", balanced=balanced), samples)
    fitted = Classifier("centroid", balanced=balanced).fit(samples.matrix(), samples.y)
    X = cloud(200, random_state=3)[0]
    np.testing.assert_allclose(streamed.predict_proba(X), fitted.predict_proba(X), atol=1e-5)
    np.testing.assert_allclose(streamed.scale_, fitted.scale_, rtol=1e-6)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_logistic_regression_is_similar_to_the_one_in_memory(n_classes: int, tmp_path: Path) -> None:
    """Rows are in order of their labels, as those of folders: unmixed, only the last label would be learned."""
    n_rows = 12_000 // 3 * n_classes
    features = cloud_set(tmp_path / "out", 12_000, spread=4.0, rows_a_part=1_000)
    samples = read_samples(features).take(np.arange(n_rows))
    streamed = fit_streamed(Classifier(), samples)
    fitted = Classifier().fit(samples.matrix(), samples.y)
    X, y = cloud(6_000, spread=4.0, random_state=5)
    X, y = X[: 2_000 * n_classes], y[: 2_000 * n_classes]
    accuracies = [(one.predict(X) == y).mean() for one in (streamed, fitted)]
    assert accuracies[1] < 0.97  # so that mistakes are possible
    assert abs(accuracies[0] - accuracies[1]) < 0.015
    shares = streamed.predict_proba(X)
    np.testing.assert_allclose(shares.sum(axis=1), 1)
    assert np.abs(shares - fitted.predict_proba(X)).mean() < 0.1
    again = Classifier.from_bytes(streamed.to_bytes())
    assert again.predict_proba(X).tobytes() == shares.tobytes()


def test_every_row_is_read_once_per_pass(tmp_path: Path) -> None:
    samples = read_samples(cloud_set(tmp_path / "out", 500, rows_a_part=60))
    n_rows: list[int] = []
    fit_streamed(Classifier("centroid"), samples, n_rows.append)
    assert sum(n_rows) == 2 * 500


def test_knn_needs_memory(tmp_path: Path) -> None:
    with pytest.raises(AnalysisError, match=r"knn.* in memory.*0.0 GiB.*--in-memory-bytes"):
        fit_streamed(Classifier("knn"), read_samples(cloud_set(tmp_path / "out", 30)))


def test_nan_features_are_refused(tmp_path: Path) -> None:
    from tests.features.feature_sets import made

    X, y = cloud(30)
    X[11, 2] = np.nan
    features = made(tmp_path / "out", X, rows_a_part=7, label=y.tolist())
    with pytest.raises(AnalysisError, match="NaN"):
        fit_streamed(Classifier("centroid"), read_samples(features))
