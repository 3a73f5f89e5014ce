"""PCA agrees with scikit-learn, for rows in any pieces and order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import sklearn.decomposition
from hypothesis import given, settings
from hypothesis import strategies as st

from featurepress.analysis import PCA, Moments, Sketch
from featurepress.errors import AnalysisError, SettingError


def rows(n_samples: int, n_features: int, *, seed: int = 0, decay: float = 0.5) -> Any:
    """Draw rows as features are: positive, sparse, far from zero mean, with variances that fall off as a power."""
    draw = np.random.default_rng(seed)
    scale = (1 + np.arange(n_features)) ** -decay
    mixed = draw.standard_normal((n_samples, n_features)) * scale
    mixed = mixed @ np.linalg.qr(draw.standard_normal((n_features, n_features)))[0]
    return np.maximum(mixed + draw.random(n_features), 0).astype(np.float32)


def pieces(X: Any, n: int, seed: int) -> list[Any]:
    draw = np.random.default_rng(seed)
    cuts = sorted(draw.integers(0, len(X), n - 1)) if n > 1 else []
    found = np.split(X, cuts)
    draw.shuffle(found)
    return found


def tree(moments: list[Any]) -> Any:
    """Merge pairwise, as on a cluster."""
    while len(moments) > 1:
        pairs = [moments[i : i + 2] for i in range(0, len(moments), 2)]
        moments = [pair[0].merge(pair[1]) if len(pair) == 2 else pair[0] for pair in pairs]
    return moments[0]


# -- moments -------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 12), seed=st.integers(0, 10**6))
def test_pieces_in_any_order_and_any_tree_have_the_same_moments(n: int, seed: int) -> None:
    X = rows(60, 7, seed=seed) + 1000
    moments = tree([Moments.empty(7).add(piece) for piece in pieces(X, n, seed)])
    exact = X.astype(np.float64)
    centred = exact - exact.mean(axis=0)
    assert moments.n_samples == 60
    np.testing.assert_allclose(moments.mean, exact.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(np.triu(moments.scatter), np.triu(centred.T @ centred), rtol=1e-9, atol=1e-9)


def test_moments_survive_storage() -> None:
    moments = Moments.empty(9).add(rows(40, 9))
    again = Moments.from_arrays(moments.to_arrays())
    assert again.n_samples == 40
    assert np.array_equal(again.mean, moments.mean)
    assert np.array_equal(np.triu(again.scatter), np.triu(moments.scatter))
    more = rows(30, 9, seed=1)
    one, other = again.add(more), Moments.empty(9).add(np.concatenate([rows(40, 9), more]))
    np.testing.assert_allclose(np.triu(one.scatter), np.triu(other.scatter), rtol=1e-10, atol=1e-10)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    X = rows(2_000, 20)
    whole = Moments.empty(20).add(X)
    monkeypatch.setattr("featurepress.analysis.moments._BLOCK_BYTES", 1)
    np.testing.assert_allclose(Moments.empty(20).add(X).scatter, whole.scatter, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", ["exact", "randomized"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinite_features_are_refused(kind: str, bad: float) -> None:
    X = rows(50, 10)
    X[7, 3] = bad
    X[9, 0] = bad
    with pytest.raises(AnalysisError, match=r"2 of 50 rows.*NaN"):
        PCA(n_components=2, solver=kind).fit(X)


# -- the exact solver ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n_samples", "n_features", "k"), [(500, 40, 10), (500, 300, 128), (60, 200, 59), (5, 3, 3)]
)
def test_exact_agrees_with_scikit_learns_full(n_samples: int, n_features: int, k: int) -> None:
    X = rows(n_samples, n_features)
    theirs = sklearn.decomposition.PCA(k, svd_solver="full").fit(X.astype(np.float64))
    ours = PCA(n_components=k).fit(X)
    assert ours.solver_ == "exact"
    np.testing.assert_allclose(ours.explained_variance_ratio_, theirs.explained_variance_ratio_, rtol=1e-6)
    np.testing.assert_allclose(ours.explained_variance_, theirs.explained_variance_, rtol=1e-6)
    for cut in cuts_with_a_gap(theirs.explained_variance_):
        angles = scipy.linalg.subspace_angles(ours.components_[:cut].T, theirs.components_[:cut].T)
        assert angles.max() < 1e-4
    assert np.abs(ours.components_ @ ours.components_.T - np.eye(k)).max() < 1e-10


def cuts_with_a_gap(variances: Any) -> Iterator[int]:
    """Yield where the relative gap between neighbouring variances is large enough to identify a subspace."""
    found = [i for i in range(1, len(variances)) if variances[i - 1] - variances[i] > 1e-3 * variances[i - 1]]
    assert found
    yield from found


def test_projections_agree_up_to_the_documented_sign() -> None:
    X = rows(300, 30)
    theirs = sklearn.decomposition.PCA(8, svd_solver="full").fit(X.astype(np.float64))
    ours = PCA(n_components=8).fit(X)
    assert (ours.components_[np.arange(8), np.abs(ours.components_).argmax(axis=1)] > 0).all()
    signs = np.sign(np.einsum("ij,ij->i", ours.components_, theirs.components_))
    np.testing.assert_allclose(ours.transform(X) * signs, theirs.transform(X), atol=1e-4)
    assert ours.transform(X).dtype == np.float32
    np.testing.assert_allclose(
        ours.inverse_transform(ours.transform(X)), theirs.inverse_transform(theirs.transform(X)), atol=1e-4
    )


def test_whitened_components_have_variance_one() -> None:
    X = rows(400, 30)
    pca = PCA(n_components=6, whiten=True).fit(X)
    np.testing.assert_allclose(pca.transform(X).var(axis=0, ddof=1), 1, rtol=1e-4)
    np.testing.assert_allclose(
        pca.inverse_transform(pca.transform(X)), PCA(n_components=6).fit(X).inverse_transform(
            PCA(n_components=6).fit(X).transform(X)), atol=1e-4
    )  # fmt: skip


@pytest.mark.parametrize("share", [0.3, 0.5, 0.9, 0.999, 1.0])
def test_components_explain_a_share_of_the_variance(share: float) -> None:
    X = rows(200, 40)
    pca = PCA(variance=share).fit(X)
    explained = pca.explained_variance_ratio_
    assert explained.sum() >= share - 1e-9
    assert explained[:-1].sum() < share
    theirs = sklearn.decomposition.PCA(share if share < 1 else None, svd_solver="full").fit(X.astype(np.float64))
    assert len(explained) == theirs.n_components_


def test_there_are_128_components_or_the_possible_maximum() -> None:
    assert PCA().fit(rows(300, 200)).components_.shape == (128, 200)
    assert PCA().fit(rows(30, 200)).components_.shape == (29, 200)


def test_equal_rows_have_no_variance() -> None:
    pca = PCA(n_components=2).fit(np.ones((10, 4), np.float32))
    assert np.array_equal(pca.explained_variance_, [0, 0])
    assert np.array_equal(pca.explained_variance_ratio_, [0, 0])
    assert np.isfinite(pca.transform(np.ones((3, 4), np.float32))).all()
    whitened = PCA(n_components=2, whiten=True).fit(np.ones((10, 4), np.float32))
    assert np.isfinite(whitened.transform(np.ones((3, 4), np.float32))).all()


# -- the randomized solver -----------------------------------------------------------------------------------


@pytest.mark.parametrize("decay", [0.25, 0.5, 1.0])
def test_randomized_explains_as_much_variance_as_exact(decay: float) -> None:
    X = rows(1_500, 700, decay=decay)
    exact = PCA(n_components=128, solver="exact").fit(X)
    found = PCA(n_components=128, solver="randomized").fit(X)
    assert found.solver_ == "randomized"
    explained = (exact.explained_variance_[:64], found.explained_variance_[:64])
    assert abs(explained[1].sum() / explained[0].sum() - 1) < 1e-3
    np.testing.assert_allclose(explained[1], explained[0], rtol=1e-3)
    along = np.var(found.transform(X)[:, :64], axis=0, ddof=1)  # the reported variance is the real one
    np.testing.assert_allclose(along, explained[0], rtol=2e-3)
    np.testing.assert_allclose(
        found.explained_variance_ratio_[:64], exact.explained_variance_ratio_[:64], rtol=1e-3
    )


@settings(max_examples=20, deadline=None)
@given(n=st.integers(1, 9), seed=st.integers(0, 10**6))
def test_sketches_merge_in_any_order(n: int, seed: int) -> None:
    X = rows(50, 30, seed=seed) + 10
    directions = np.linalg.qr(np.random.default_rng(seed).standard_normal((30, 5)))[0].astype(np.float32)
    sketch = tree([Sketch.empty(directions).add(piece) for piece in pieces(X, n, seed)])
    centred = X.astype(np.float64) - X.astype(np.float64).mean(axis=0)
    assert sketch.n_samples == 50
    np.testing.assert_allclose(sketch.product, centred.T @ centred @ directions, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(sketch.total, (centred**2).sum(), rtol=1e-6)


def test_a_seed_repeats_and_the_number_of_features_chooses_the_solver() -> None:
    X = rows(100, 50)
    one, other = (PCA(n_components=5, solver="randomized", random_state=3).fit(X) for _ in range(2))
    assert np.array_equal(one.components_, other.components_)
    assert PCA().solver_for(4_000) == "exact"
    assert PCA().solver_for(4_001) == "randomized"
    assert PCA(variance=0.9).solver_for(11_520) == "exact"
    assert PCA(solver="exact").solver_for(11_520) == "exact"


# -- bad input -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"n_components": 0}, r"'n_components' setting must be an integer of at least 1. Got 0"),
        ({"variance": -0.5}, r"'variance' setting must be a number from 0 to 1. Got -0.5"),
        ({"variance": 1.5}, r"Got 1.5"),
        ({"variance": 0.5, "n_components": 3}, r"either 'n_components'.* or 'variance'.*not both"),
        ({"solver": "magic"}, r"must be 'auto', 'exact' or 'randomized'. Got 'magic'"),
        ({"solver": "randomized", "variance": 0.5}, "only solver='exact' finds"),
    ],
)
def test_wrong_settings_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingError, match=words):
        PCA(**options)


@pytest.mark.parametrize("solver", ["exact", "randomized"])
def test_wrong_rows_are_refused(solver: str) -> None:
    with pytest.raises(AnalysisError, match=r"at most 9 here.*Got 20"):
        PCA(n_components=20, solver=solver).fit(rows(10, 30))
    with pytest.raises(AnalysisError, match="at most 8 here"):
        PCA(n_components=9, solver=solver).fit(rows(100, 8))
    with pytest.raises(AnalysisError, match=r"at least 2 images. Got 1"):
        PCA(solver=solver).fit(rows(1, 8))
    with pytest.raises(AnalysisError, match="Got 0"):
        PCA(solver=solver).fit(np.empty((0, 8), np.float32))
    with pytest.raises(AnalysisError, match="has not been fitted"):
        PCA().transform(rows(2, 8))
    with pytest.raises(AnalysisError, match=r"8 features per row.*\(2, 9\)"):
        PCA(n_components=2, solver=solver).fit(rows(20, 8)).transform(rows(2, 9))


@pytest.mark.parametrize("whiten", [False, True])
def test_a_fitted_pca_survives_storage(whiten: bool) -> None:
    X = rows(100, 20)
    pca = PCA(n_components=4, whiten=whiten).fit(X)
    again = PCA.from_bytes(pca.to_bytes())
    assert np.array_equal(again.transform(X), pca.transform(X))
    assert (again.n_samples_, again.solver_, again.whiten) == (100, "exact", whiten)
