"""Runs tasks over the parts of a feature set for the verbs that work on features, and tells how far they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from featurepress.engines import Engine, LocalEngine, Task
from featurepress.features.feature_set import FeatureSet
from featurepress.ledger import Plan
from featurepress.progress import OnProgress, step
from featurepress.settings import available_cores


class Runner:
    """Runs tasks over a feature set; what it started is ended by `close`.

    Parameters
    ----------
    features : FeatureSet
        The set.
    engine : Engine or None
        Where to run; None for worker processes on this machine.
    on_progress : callable
        Called with what is being done, and how many bytes of features of how many are done. Tasks beat
        ``("rows", n)``.
    preload : str
        Module that new workers on this machine import at once.
    workers : int, optional
        Of them, at most; by default one a core.
    """

    def __init__(
        self,
        features: FeatureSet,
        engine: Engine | None,
        on_progress: OnProgress,
        *,
        preload: str,
        workers: int | None = None,
    ) -> None:
        self._row_bytes, self._of = 4 * features.n_features, 4 * features.n_features * len(features)
        self._engine, self._owned, self._on_progress = engine, engine is None, on_progress
        self._preload, self._workers = preload, workers or available_cores()

    def fit(self, plan: Plan, task: Task[Any], n_shards: int) -> Iterator[Any]:
        """Run a task that sums; what one task does alone is done here, by all cores at once."""
        if self._owned and n_shards == 1:
            self._on_progress(step("fitting", 0, self._of))
            return iter([task(plan, 0)])
        return self.run(plan, "fitting", task, range(n_shards))

    def run(self, plan: Plan, doing: str, task: Task[Any], shards: Sequence[int]) -> Iterator[Any]:
        """Run a task over some shards; yield the results as they come."""
        if self._engine is None:
            self._engine = LocalEngine(min(self._workers, max(1, len(shards))), preload=(self._preload,))
        self._engine.connect()
        done = 0

        def on_message(message: Any) -> None:
            nonlocal done
            done += message[1] * self._row_bytes
            self._on_progress(step(doing, min(done, self._of), self._of))

        self._on_progress(step(doing, 0, self._of))
        return self._engine.run(task, plan, shards, on_message)

    def close(self) -> None:
        """End the workers that were started here."""
        if self._owned and self._engine is not None:
            self._engine.close()
