"""The contract of engines, on clusters."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from featurepress.engines import Engine
from featurepress.ledger import Plan
from tests.contracts import tasks
from tests.contracts.test_engines import (
    test_a_shard_that_comes_after_the_end_is_not_run,
    test_a_shard_whose_process_always_dies_is_an_error,
    test_a_shard_whose_process_dies_is_run_again,
    test_a_task_can_allow_fewer_deaths,
    test_a_task_that_cannot_be_pickled_is_an_error,
    test_an_engine_can_be_closed_twice,
    test_an_engine_can_be_used_after_an_error,
    test_an_out_of_memory_error_names_the_setting,
    test_closing_the_generator_stops_all_shards,
    test_every_shard_runs_once_and_returns_its_result,
    test_nothing_runs_before_the_first_result_is_requested,
    test_shards_in_progress_are_dropped_when_a_task_fails,
    test_shards_in_progress_are_dropped_when_the_generator_is_closed,
    test_shards_may_be_added_while_the_first_ones_run,
    test_the_error_of_a_task_reaches_the_caller,
    test_the_error_of_the_shards_reaches_the_caller,
    test_the_last_message_of_a_dead_worker_is_delivered,
    test_without_shards_there_are_no_results,
)

__all__ = [
    "test_a_shard_that_comes_after_the_end_is_not_run",
    "test_a_shard_whose_process_always_dies_is_an_error",
    "test_a_shard_whose_process_dies_is_run_again",
    "test_a_task_can_allow_fewer_deaths",
    "test_a_task_that_cannot_be_pickled_is_an_error",
    "test_an_engine_can_be_closed_twice",
    "test_an_engine_can_be_used_after_an_error",
    "test_an_out_of_memory_error_names_the_setting",
    "test_closing_the_generator_stops_all_shards",
    "test_every_shard_runs_once_and_returns_its_result",
    "test_nothing_runs_before_the_first_result_is_requested",
    "test_shards_in_progress_are_dropped_when_a_task_fails",
    "test_shards_in_progress_are_dropped_when_the_generator_is_closed",
    "test_shards_may_be_added_while_the_first_ones_run",
    "test_the_error_of_a_task_reaches_the_caller",
    "test_the_error_of_the_shards_reaches_the_caller",
    "test_the_last_message_of_a_dead_worker_is_delivered",
    "test_without_shards_there_are_no_results",
]


@pytest.fixture
def process_engine(engine: Engine, request: pytest.FixtureRequest) -> Engine:
    if "generator_is_closed" in request.node.name and "spark" in request.node.name:
        pytest.skip("Spark returns the results of a job at its end")
    return engine


def test_a_running_job_is_dropped_when_the_shards_fail(engine: Engine, plan: Plan, tmp_path: Path) -> None:
    def shards() -> Iterator[int]:
        yield 3
        end = time.monotonic() + 120
        while not tasks.attempts(tmp_path, 3):
            assert time.monotonic() < end
            time.sleep(0.05)
        raise OSError("the listing broke off")

    results = engine.run(tasks.Recorded(tmp_path, tasks.hang), plan, shards())
    with pytest.raises(OSError, match="the listing broke off"):
        next(results)
    begun = time.monotonic()
    assert list(engine.run(tasks.square, plan, [2])) == [4]
    assert time.monotonic() - begun < 60


BESIDE_ANOTHER = """
import ray
from ray.cluster_utils import Cluster
from featurepress import engines
other = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
engine = engines.Ray()
engine.connect()
print("joined" if ray.get_runtime_context().gcs_address == other.address else "alone")
engine.close()
other.shutdown()
"""


def test_without_an_address_a_running_cluster_is_not_used(loopback: None) -> None:
    pytest.importorskip("ray", reason="ray is not installed: make test-engines")
    done = subprocess.run(
        [sys.executable, "-c", BESIDE_ANOTHER], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == ["alone"]
