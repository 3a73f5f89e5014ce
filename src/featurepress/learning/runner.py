"""Runs tasks over the parts of a feature set, with progress."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from featurepress.engines import Engine, LocalEngine, Task
from featurepress.features.feature_set import FeatureSet
from featurepress.ledger import Plan
from featurepress.progress import OnProgress, step
from featurepress.settings import available_cores


class Runner:
    """Runs tasks over a feature set; `close` stops the workers that it started.

    Without an engine, tasks run in worker processes on this machine, by default one per core, which import the
    module `preload` first. `on_progress` is called with the step and its bytes of features: tasks report rows with
    ``send_message(("rows", n))``.
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
        self._row_bytes = 4 * features.n_features
        self._total_bytes = self._row_bytes * len(features)
        self._engine = engine
        self._is_owned = engine is None
        self._on_progress = on_progress
        self._preload = preload
        self._workers = workers or available_cores()

    def fit(self, plan: Plan, task: Task[Any], n_shards: int) -> Iterator[Any]:
        """Run a task that sums; a single task runs in this process, where it may use all cores."""
        if self._is_owned and n_shards == 1:
            self._on_progress(step("fitting", 0, self._total_bytes))
            return iter([task(plan, 0)])
        return self.run(plan, "fitting", task, range(n_shards))

    def run(self, plan: Plan, doing: str, task: Task[Any], shards: Sequence[int]) -> Iterator[Any]:
        """Run a task over shards; yield the results in the order in which they finish."""
        if self._engine is None:
            self._engine = LocalEngine(min(self._workers, max(1, len(shards))), preload=(self._preload,))
        self._engine.connect()
        done = 0

        def on_message(message: Any) -> None:
            nonlocal done
            done += message[1] * self._row_bytes
            self._on_progress(step(doing, min(done, self._total_bytes), self._total_bytes))

        self._on_progress(step(doing, 0, self._total_bytes))
        return self._engine.run(task, plan, shards, on_message)

    def close(self) -> None:
        """Stop the workers that this runner started."""
        if self._is_owned and self._engine is not None:
            self._engine.close()
