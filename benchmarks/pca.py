"""PCA compared with scikit-learn's IncrementalPCA on the same rows, and the memory of a large one.

    python -m benchmarks.pca [--rows N] [--large N]

20,000 rows of 1,280 features (exact) and of 11,520 (randomized), to 128 components. The rows are random, and their
variances decrease like those of features. Both explained variances of the first 64 components are compared.
"""

from __future__ import annotations

import argparse
import resource
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.speed import headline
from featurepress.analysis import PCA, Moments

N_COMPONENTS = 128


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--large", type=int, default=1_000_000, help="rows of 1,280 features for the memory")
    parser.add_argument("--features", type=int, nargs="*", default=[1_280, 11_520])
    arguments = parser.parse_args()
    print(headline())
    large(arguments.large)
    print(
        "\n| rows | features | solver | seconds | IncrementalPCA, s | times as fast | top 64, of IncrementalPCA |"
    )
    print("|---|---|---|---|---|---|---|")
    for n_features in arguments.features:
        beside(draw(arguments.rows, n_features))


def draw(n_rows: int, n_features: int, *, seed: int = 0) -> Any:
    """Return random rows whose variances decrease as a power: array (n_rows, n_features) float32."""
    random = np.random.default_rng(seed)
    n_factors = min(512, n_features)
    factors = random.standard_normal((n_factors, n_features), np.float32)
    factors *= ((1 + np.arange(n_factors)) ** -0.5)[:, None].astype(np.float32)
    rows = random.standard_normal((n_rows, n_factors), np.float32) @ factors
    rows += random.standard_normal((n_rows, n_features), np.float32) * 0.1
    return np.maximum(rows + random.random(n_features, np.float32), 0, out=rows)


def beside(X: Any) -> None:
    """Time both, and compare their explained variance."""
    from sklearn.decomposition import IncrementalPCA

    ours, seconds = timed(lambda: PCA(n_components=N_COMPONENTS).fit(X))
    # By default a batch has 5 n_features rows: wide rows would all be in one batch.
    batch_size = min(5 * X.shape[1], 2_000) if X.shape[1] > len(X) // 5 else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs, their_seconds = timed(lambda: IncrementalPCA(N_COMPONENTS, batch_size=batch_size).fit(X))
    explained = ours.explained_variance_[:64].sum() / theirs.explained_variance_[:64].sum()
    print(
        f"| {len(X):,} | {X.shape[1]:,} | {ours.solver_} | {seconds:.1f} | {their_seconds:.1f} | "
        f"{their_seconds / seconds:.1f} | {explained:.5f} |",
        flush=True,
    )


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """Return the result of a function, and its seconds."""
    started = time.perf_counter()
    return work(), time.perf_counter() - started


def large(n_rows: int) -> None:
    """Fit to many rows, drawn batch by batch."""
    moments, n_features = Moments.empty(1_280), 1_280
    started = time.perf_counter()
    for number in range(0, n_rows, 8_192):
        moments.add(draw(min(8_192, n_rows - number), n_features, seed=number))
    PCA(n_components=N_COMPONENTS).fit_moments(moments)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{n_rows:,} x {n_features:,}: {seconds:.0f} s including drawing them, {peak:,.0f} MB at most", flush=True
    )


if __name__ == "__main__":
    main()
