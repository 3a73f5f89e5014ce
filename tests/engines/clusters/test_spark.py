"""Decisions of the Spark engine, without a cluster."""

from __future__ import annotations

import pickle
from typing import Any

import pyarrow as pa
import pytest

from featurepress._version import __version__
from featurepress.engines import spark as engine
from featurepress.engines import worker
from featurepress.errors import EngineError, WorkerDeathError
from featurepress.ledger import Plan
from tests.contracts import tasks


class Conf:
    """Settings of a session."""

    def __init__(self, **values: str) -> None:
        self.values = {name.replace("_", "."): value for name, value in values.items()}

    def get(self, name: str, default: str) -> str:
        return self.values.get(name, default)


class Session:
    """The part of a session that the engine uses."""

    def __init__(self, cores: int | None, **conf: str) -> None:
        self.conf, self._cores = Conf(**conf), cores

    @property
    def sparkContext(self) -> Any:  # noqa: N802 - Spark's name
        if self._cores is None:
            raise AttributeError("Spark Connect has none")
        return type("Context", (), {"defaultParallelism": self._cores})


@pytest.mark.parametrize(
    ("session", "expected"),
    [
        (Session(2), 16),
        (Session(100), 800),
        (Session(10_000), 4_096),
        (Session(None), 1_024),
        (Session(2, spark_dynamicAllocation_enabled="true"), 4_096),
    ],
)
def test_the_size_of_a_wave_depends_on_the_cluster(session: Session, expected: int) -> None:
    assert engine.shards_per_job(session) == expected


def test_a_task_with_two_cores_runs_two_shards(plan: Plan) -> None:
    assert engine.cores_per_task(Session(8)) == 1
    assert engine.cores_per_task(Session(8, spark_task_cpus="2")) == 2
    run = engine._mapper(worker.packed(__version__, tasks.worker_id, plan), [3, 4, 5], 2)
    batches = [pa.RecordBatch.from_arrays([pa.array([number])], ["id"]) for number in (0, 1)]
    first, second = run(iter(batches))
    assert sorted(first.column(0).to_pylist()) == [3, 4]
    assert second.column(0).to_pylist() == [5]
    processes = {pickle.loads(data) for data in first.column(1).to_pylist()}
    assert len(processes) == 2  # one a core
    assert pickle.loads(second.column(1)[0].as_py()) in processes  # and kept
    worker._engine.cache_clear()


@pytest.mark.parametrize(
    "text",
    [
        "Job aborted due to stage failure: Task 3 in stage 1.0 failed 4 times: ExecutorLostFailure (executor 1)",
        "org.apache.spark.SparkException: Python worker exited unexpectedly (crashed)",
        "java.io.EOFException",
        "Task 0 in stage 3.0 failed 1 times: Executor 2 lost because worker was decommissioned",
    ],
)
def test_a_job_that_lost_its_workers_is_run_again_five_times_at_most(text: str) -> None:
    for n_lost in range(1, 5):
        engine.raise_unless_lost(RuntimeError(text), n_lost)
    with pytest.raises(WorkerDeathError, match=r"raise spark.executor.memoryOverhead .*or lower"):
        engine.raise_unless_lost(RuntimeError(text), 5)


LOST_AT = (
    "Job aborted: Task 0 in stage 0.0 failed 4 times, most recent failure: Lost task 0.3 in stage 0.0 (TID 3) "
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Traceback\nModuleNotFoundError: No module named 'pyarrow'", "A worker cannot run Python functions"),
        (
            f"{LOST_AT}(node7 executor 1): ModuleNotFoundError: No module named 'pandas'",
            "The worker node7 cannot run Python functions .No module named 'pandas'",
        ),
        (
            "[PYTHON_VERSION_MISMATCH] Python in worker has different version: 3.9 than that in driver: 3.11, "
            "PySpark cannot run with different minor versions.",
            "another Python than the driver: .*3.9 than that in driver: 3.11",
        ),
        (
            f'{LOST_AT}(node7 executor 1): java.io.IOException: Cannot run program "python9": error=2',
            "The worker node7 has no Python at 'python9'",
        ),
    ],
)
def test_missing_libraries_of_workers_are_reported_at_once(text: str, words: str) -> None:
    with pytest.raises(EngineError, match=f"{words}.*spark.archives"):
        engine.raise_unless_lost(RuntimeError(text), 1)


@pytest.mark.parametrize(
    ("reason", "told"),
    [
        ("Container killed by YARN for exceeding physical memory limits. 5.5 GB of 5.5 GB used", "killed by YARN"),
        ("The executor with id 1 exited with exit code 137(SIGKILL, possible container OOM)", "exit code 137"),
    ],
)
def test_containers_killed_for_memory_name_the_setting(reason: str, told: str) -> None:
    text = f"{LOST_AT}(node7 executor 1): ExecutorLostFailure (executor 1 exited) Reason: {reason}"
    engine.raise_unless_lost(RuntimeError(text), 1)  # another try may have more room
    with pytest.raises(EngineError, match=rf"on node7 ran out of memory .*{told}.*spark.executor.memoryOverhead"):
        engine.raise_unless_lost(RuntimeError(text), 5)


def test_a_job_with_another_error_is_not_retried() -> None:
    with pytest.raises(WorkerDeathError, match="the cluster is on fire"):
        engine.raise_unless_lost(RuntimeError("the cluster is on fire\nat line 3"), 1)
    ours = RuntimeError(f"PythonException: {worker.marked(EngineError('our own line'))}\n at java")
    with pytest.raises(EngineError, match=r"^our own line$"):
        engine.raise_unless_lost(ours, 1)
